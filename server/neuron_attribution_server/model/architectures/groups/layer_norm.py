"""The shape of Llama with LayerNorm, or with blocks in parallel."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.groups.feed_forwards import UNGATED
from neuron_attribution_server.model.architectures.groups.llama import LLAMA
from neuron_attribution_server.model.architectures.spec import FeedForward, Layout, NormKind, Rows, Variant

LLAMA_LAYER_NORM = replace(LLAMA, family="llama with LayerNorm", norm=NormKind.LAYER)

COHERE = replace(
    LLAMA,
    family="cohere",
    norm=NormKind.LAYER,
    ffn_norm="input_layernorm",
    parallel=True,
    logit_multiplier="logit_scale",
)

PHI = replace(
    LLAMA,
    family="phi",
    final_norm="model.final_layernorm",
    norm=NormKind.LAYER,
    attention_output="self_attn.dense",
    ffn_norm="input_layernorm",
    ffn=FeedForward(output="mlp.fc2", up=Rows("mlp.fc1"), activation="mlp.activation_fn"),
    parallel=True,
)

LAYER_NORM_FAMILIES = (
    COHERE,
    PHI,
    replace(LLAMA_LAYER_NORM, family="nemotron", norm_offset=1.0, ffn=UNGATED),
    replace(LLAMA_LAYER_NORM, family="jais2", ffn=UNGATED),
    replace(
        LLAMA_LAYER_NORM,
        family="starcoder2",
        ffn=FeedForward(output="mlp.c_proj", up=Rows("mlp.c_fc"), activation="mlp.act"),
    ),
    replace(
        LLAMA_LAYER_NORM,
        family="stablelm",
        variants=(Variant("use_parallel_residual", True, {"parallel": True, "ffn_norm": "input_layernorm"}),),
    ),
    replace(LLAMA_LAYER_NORM, family="olmo", norm_epsilon=1e-5, value_clip="clip_qkv"),
    replace(
        LLAMA_LAYER_NORM,
        family="persimmon",
        final_norm="model.final_layernorm",
        attention_output="self_attn.dense",
        value=Rows("self_attn.query_key_value", Layout.PER_HEAD),
        ffn=FeedForward(output="mlp.dense_4h_to_h", up=Rows("mlp.dense_h_to_4h"), activation="mlp.act"),
    ),
    replace(COHERE, family="cohere2"),
    replace(COHERE, family="cohere_compass_text"),
)
