"""Mixtures of experts: routed ones, and ones that every token goes through."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.groups.feed_forwards import GATED
from neuron_attribution_server.model.architectures.groups.layer_norm import COHERE
from neuron_attribution_server.model.architectures.groups.llama import GRANITE, LLAMA, OLMO2
from neuron_attribution_server.model.architectures.spec import FeedForward, Layout, NormKind, Rows

SHARED = replace(
    GATED,
    output="mlp.shared_experts.down_proj",
    up=Rows("mlp.shared_experts.up_proj"),
    gate=Rows("mlp.shared_experts.gate_proj"),
    activation="mlp.shared_experts.act_fn",
)

MIXTRAL = replace(LLAMA, family="mixtral", experts="mlp.experts", expert_outputs=("mlp",))

WITH_SHARED_EXPERTS = replace(MIXTRAL, family="llama with experts and a shared one", shared_ffn=SHARED)

GRANITE_MOE = replace(
    GRANITE, family="granitemoe", experts="block_sparse_moe.experts", expert_outputs=("block_sparse_moe", "shared_mlp")
)

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
    LLAMA4,
    *(
        replace(MIXTRAL, family=family)
        for family in ("qwen3_moe", "qwen3_vl_moe_text", "olmoe", "gpt_oss", "minimax_m2", "mellum")
    ),
    *(
        replace(WITH_SHARED_EXPERTS, family=family)
        for family in ("glm4_moe", "ernie4_5_moe", "dots1", "exaone_moe", "solar_open")
    ),
    replace(MIXTRAL, family="phimoe", norm=NormKind.LAYER),
    replace(OLMO2, family="flex_olmo", experts="mlp.experts", expert_outputs=("mlp",)),
    replace(COHERE, family="cohere2_moe", experts="mlp.experts", expert_outputs=("mlp",), shared_ffn=SHARED),
    replace(
        MIXTRAL,
        family="qwen2_moe",
        shared_ffn=FeedForward(
            output="mlp.shared_expert.down_proj",
            up=Rows("mlp.shared_expert.up_proj"),
            gate=Rows("mlp.shared_expert.gate_proj"),
            activation="mlp.shared_expert.act_fn",
            weight="mlp.shared_expert_gate",
        ),
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
    replace(
        GRANITE_MOE,
        family="granitemoeshared",
        shared_ffn=FeedForward(
            output="shared_mlp.output_linear",
            up=Rows("shared_mlp.input_linear", Layout.SECOND_HALF),
            gate=Rows("shared_mlp.input_linear", Layout.FIRST_HALF),
            activation="shared_mlp.activation",
        ),
    ),
    *(
        replace(
            WITH_SHARED_EXPERTS,
            family=family,
            value=Rows("self_attn.kv_b_proj", Layout.LATENT),
            value_latent=("self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm"),
        )
        for family in ("deepseek_v2", "deepseek_v3")
    ),
)
