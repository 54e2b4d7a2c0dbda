"""Mixtures of experts: routed ones, and ones that every token goes through."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from neuron_attribution_server.model.architectures.groups.feed_forwards import FUSED_GATED, GATED, clamped_swiglu
from neuron_attribution_server.model.architectures.groups.layer_norm import COHERE
from neuron_attribution_server.model.architectures.groups.llama import GEMMA2, GRANITE, LLAMA, OLMO2
from neuron_attribution_server.model.architectures.spec import FeedForward, Gate, Layout, NormKind, Rows

SHARED = replace(
    GATED,
    output="mlp.shared_experts.down_proj",
    up=Rows("mlp.shared_experts.up_proj"),
    gate=Rows("mlp.shared_experts.gate_proj"),
    activation="mlp.shared_experts.act_fn",
)

SHARED_EXPERT = FeedForward(
    output="mlp.shared_expert.down_proj",
    up=Rows("mlp.shared_expert.up_proj"),
    gate=Rows("mlp.shared_expert.gate_proj"),
    activation="mlp.shared_expert.act_fn",
)

WEIGHED_SHARED_EXPERT = replace(SHARED_EXPERT, weight="mlp.shared_expert_gate")

SHARED_GRANITE = FeedForward(
    output="shared_mlp.output_linear",
    up=Rows("shared_mlp.input_linear", Layout.SECOND_HALF),
    gate=Rows("shared_mlp.input_linear", Layout.FIRST_HALF),
    activation="shared_mlp.activation",
)

MIXTRAL = replace(LLAMA, family="mixtral", experts="mlp.experts", expert_outputs=("mlp",))

WITH_SHARED_EXPERTS = replace(MIXTRAL, family="llama with experts and a shared one", shared_ffn=SHARED)

GRANITE_MOE = replace(
    GRANITE, family="granitemoe", experts="block_sparse_moe.experts", expert_outputs=("block_sparse_moe", "shared_mlp")
)

GRANITE_MOE_SHARED = replace(GRANITE_MOE, family="granitemoeshared", shared_ffn=SHARED_GRANITE)

LLAMA4 = replace(
    LLAMA,
    family="llama4_text",
    ffn=FeedForward(
        output="feed_forward.down_proj",
        up=Rows("feed_forward.up_proj"),
        gate=Rows("feed_forward.gate_proj"),
        activation="feed_forward.activation_fn",
    ),
    shared_ffn=FeedForward(
        output="feed_forward.shared_expert.down_proj",
        up=Rows("feed_forward.shared_expert.up_proj"),
        gate=Rows("feed_forward.shared_expert.gate_proj"),
        activation="feed_forward.shared_expert.activation_fn",
    ),
    experts="feed_forward.experts",
    experts_router="feed_forward.router",
    expert_outputs=("feed_forward",),
)

EXPERT_FAMILIES = (
    MIXTRAL,
    GRANITE_MOE,
    GRANITE_MOE_SHARED,
    LLAMA4,
    *(
        replace(MIXTRAL, family=family)
        for family in ("qwen3_moe", "qwen3_vl_moe_text", "olmoe", "gpt_oss", "minimax_m2", "mellum")
    ),
    *(
        replace(WITH_SHARED_EXPERTS, family=family)
        for family in ("glm4_moe", "ernie4_5_moe", "dots1", "exaone_moe", "solar_open", "hy_v3", "aria_text")
    ),
    replace(MIXTRAL, family="phimoe", norm=NormKind.LAYER),
    replace(OLMO2, family="flex_olmo", experts="mlp.experts", expert_outputs=("mlp",)),
    replace(COHERE, family="cohere2_moe", experts="mlp.experts", expert_outputs=("mlp",), shared_ffn=SHARED),
    replace(MIXTRAL, family="flint", shared_ffn=SHARED_EXPERT),
    replace(MIXTRAL, family="qwen2_moe", shared_ffn=WEIGHED_SHARED_EXPERT),
    replace(MIXTRAL, family="mimo_v2_flash", value_multiplier="attention_value_scale"),
    replace(
        WITH_SHARED_EXPERTS,
        family="kolibri1",
        attention_write="post_self_attn_layernorm",
        ffn_write="post_mlp_layernorm",
    ),
    replace(
        MIXTRAL,
        family="hunyuan_v1_moe",
        shared_ffn=FeedForward(
            output="mlp.shared_mlp.down_proj",
            up=Rows("mlp.shared_mlp.up_proj"),
            gate=Rows("mlp.shared_mlp.gate_proj"),
            activation="mlp.shared_mlp.act_fn",
        ),
    ),
    replace(GRANITE_MOE_SHARED, family="granitemoe_swa"),
    replace(
        GEMMA2,
        family="afmoe",
        norm_offset=0.0,
        attention_gate=Gate(Rows("self_attn.gate_proj"), torch.sigmoid),
        ffn_norm="pre_mlp_layernorm",
        ffn_write="post_mlp_layernorm",
        experts="mlp.experts",
        shared_ffn=SHARED,
    ),
    replace(
        MIXTRAL,
        family="minimax_m3_vl_text",
        norm_offset=1.0,
        ffn=replace(FUSED_GATED, activation="mlp", join=clamped_swiglu),
        shared_ffn=FeedForward(
            output="mlp.shared_experts.down_proj",
            up=Rows("mlp.shared_experts.gate_up_proj", Layout.SECOND_HALF),
            gate=Rows("mlp.shared_experts.gate_up_proj", Layout.FIRST_HALF),
            activation="mlp.shared_experts",
            join=clamped_swiglu,
        ),
        expert_multiplier="routed_scaling_factor",
    ),
    replace(
        WITH_SHARED_EXPERTS,
        family="laguna",
        attention_gate=Gate(Rows("self_attn.g_proj"), functional.softplus),
        expert_multiplier="moe_routed_scaling_factor",
    ),
)
