"""Models some of whose layers mix positions by recurrence: convolutions, state spaces, delta networks."""

from __future__ import annotations

from dataclasses import replace

import torch
from neuron_attribution.results import Mixer

from neuron_attribution_server.model.architectures.groups.experts import (
    GRANITE_MOE_SHARED,
    SHARED_GRANITE,
    WEIGHED_SHARED_EXPERT,
)
from neuron_attribution_server.model.architectures.groups.latent_attention import DEEPSEEK
from neuron_attribution_server.model.architectures.groups.llama import GEMMA, LLAMA, OLMO2
from neuron_attribution_server.model.architectures.spec import FeedForward, Gate, Layout, Recurrence, Rows

CONVOLUTION = Recurrence(mixer=Mixer.SHORT_CONVOLUTION, output="conv.out_proj")
STATE_SPACE = Recurrence(mixer=Mixer.STATE_SPACE, output="mamba.out_proj")

LFM2 = replace(
    LLAMA,
    family="lfm2",
    final_norm="model.embedding_norm",
    attention_norm="operator_norm",
    attention_output="self_attn.out_proj",
    ffn_norm="ffn_norm",
    ffn=FeedForward(
        output="feed_forward.w2", up=Rows("feed_forward.w3"), gate=Rows("feed_forward.w1"), activation=None
    ),
    recurrence=CONVOLUTION,
)

BAMBA = replace(
    LLAMA,
    family="bamba",
    final_norm="model.final_layernorm",
    ffn_norm="pre_ff_layernorm",
    ffn=FeedForward(
        output="feed_forward.down_proj",
        up=Rows("feed_forward.up_proj"),
        gate=Rows("feed_forward.gate_proj"),
        activation="feed_forward.act_fn",
    ),
    recurrence=STATE_SPACE,
)

NEMOTRON_H = replace(
    LLAMA,
    family="nemotron_h",
    final_norm="model.norm_f",
    attention_norm="norm",
    attention_output="mixer.o_proj",
    value=Rows("mixer.v_proj"),
    ffn_norm="norm",
    ffn=FeedForward(output="mixer.down_proj", up=Rows("mixer.up_proj"), activation="mixer.act_fn"),
    experts="mixer.experts",
    expert_outputs=("mixer",),
    shared_ffn=FeedForward(
        output="mixer.shared_experts.down_proj",
        up=Rows("mixer.shared_experts.up_proj"),
        activation="mixer.shared_experts.act_fn",
    ),
    recurrence=Recurrence(mixer=Mixer.STATE_SPACE, output="mixer.out_proj"),
)

QWEN3_5 = replace(
    GEMMA,
    family="qwen3_5_text",
    attention_gate=Gate(Rows("self_attn.q_proj", Layout.QUERY_GATE), torch.sigmoid),
    recurrence=Recurrence(mixer=Mixer.GATED_DELTA_NETWORK, output="linear_attn.out_proj"),
)

RECURRENT_FAMILIES = (
    LFM2,
    BAMBA,
    NEMOTRON_H,
    QWEN3_5,
    *(
        replace(
            QWEN3_5, family=family, experts="mlp.experts", expert_outputs=("mlp",), shared_ffn=WEIGHED_SHARED_EXPERT
        )
        for family in ("qwen3_next", "qwen3_5_moe_text")
    ),
    replace(LFM2, family="lfm2_moe", experts="feed_forward.experts", expert_outputs=("feed_forward",)),
    replace(BAMBA, family="jamba", experts="feed_forward.experts", expert_outputs=("feed_forward",)),
    replace(
        GRANITE_MOE_SHARED,
        family="granitemoehybrid",
        ffn=SHARED_GRANITE,
        recurrence=STATE_SPACE,
    ),
    replace(
        BAMBA,
        family="falcon_h1",
        ffn=replace(
            BAMBA.ffn, gate_multiplier="feed_forward.gate_multiplier", multiplier="feed_forward.down_multiplier"
        ),
        attention_input_multiplier="attention_in_multiplier",
        attention_multiplier="attn_out_multiplier",
        recurrence=replace(STATE_SPACE, multiplier="ssm_out_multiplier"),
        logit_multiplier="lm_head_multiplier",
    ),
    replace(
        OLMO2,
        family="olmo_hybrid",
        recurrence=Recurrence(
            mixer=Mixer.GATED_DELTA_NETWORK,
            output="linear_attn.o_proj",
            changes={
                "attention_norm": "input_layernorm",
                "ffn_norm": "post_attention_layernorm",
                "ffn_write": None,
            },
        ),
    ),
    replace(
        DEEPSEEK,
        family="kimi_linear",
        recurrence=Recurrence(mixer=Mixer.GATED_DELTA_NETWORK, output="self_attn.o_proj"),
    ),
    replace(
        GEMMA,
        family="recurrent_gemma",
        final_norm="model.final_norm",
        attention_norm="temporal_pre_norm",
        attention_output="temporal_block.o_proj",
        value=Rows("temporal_block.v_proj"),
        ffn_norm="channel_pre_norm",
        ffn=FeedForward(
            output="mlp_block.down_proj",
            up=Rows("mlp_block.up_proj"),
            gate=Rows("mlp_block.gate_proj"),
            activation="mlp_block.act_fn",
        ),
        recurrence=Recurrence(
            mixer=Mixer.GATED_LINEAR_RECURRENCE,
            output="temporal_block.linear_out",
            kept=("temporal_block.conv1d_state", "temporal_block.rg_lru.recurrent_states"),
        ),
        logit_cap="logits_soft_cap",
    ),
)
