"""The shape of Llama with RMS norms: gated feed-forward networks, norms before blocks, after them, or both."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.groups.feed_forwards import FUSED_GATED, GATED, UNGATED
from neuron_attribution_server.model.architectures.spec import (
    ArchitectureSpec,
    FeedForward,
    Layout,
    NormKind,
    Rows,
    Variant,
)

LLAMA = ArchitectureSpec(
    family="llama",
    layers="model.layers",
    final_norm="model.norm",
    norm=NormKind.RMS,
    attention_norm="input_layernorm",
    attention_output="self_attn.o_proj",
    value=Rows("self_attn.v_proj"),
    ffn_norm="post_attention_layernorm",
    ffn=GATED,
)

GEMMA = replace(LLAMA, family="gemma", norm_offset=1.0)

GEMMA2 = replace(
    GEMMA,
    family="gemma2",
    attention_write="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    ffn_write="post_feedforward_layernorm",
)

OLMO2 = replace(
    LLAMA,
    family="olmo2",
    attention_norm=None,
    attention_write="post_attention_layernorm",
    ffn_norm=None,
    ffn_write="post_feedforward_layernorm",
)

GEMMA4 = replace(
    GEMMA2,
    family="gemma4_text",
    norm_offset=0.0,
    value_else=Rows("self_attn.k_proj"),
    value_norm="self_attn.v_norm",
    value_sharing="layer_types",
    experts="experts",
    shared_ffn=GATED,
    experts_norm="pre_feedforward_layernorm_2",
    part_writes=("post_feedforward_layernorm_1", "post_feedforward_layernorm_2"),
    ffn_also_writes="post_per_layer_input_norm",
    stream_scalar="layer_scalar",
)

GRANITE = replace(LLAMA, family="granite", residual_multiplier="residual_multiplier", logit_divisor="logits_scaling")

GLM = replace(LLAMA, family="glm", ffn=FUSED_GATED)

LLAMA_FAMILIES = (
    LLAMA,
    GEMMA,
    GEMMA2,
    GEMMA4,
    OLMO2,
    GRANITE,
    GLM,
    *(
        replace(LLAMA, family=family)
        for family in (
            "mistral",
            "ministral",
            "ministral3",
            "qwen2",
            "qwen3",
            "smollm3",
            "cwm",
            "seed_oss",
            "helium",
            "hunyuan_v1_dense",
            "ernie4_5",
            "internlm3",
            "iquestcoder",
            "qwen2_vl_text",
            "qwen2_5_vl_text",
            "qwen3_vl_text",
            "mllama_text_model",
        )
    ),
    replace(LLAMA, family="bitnet", mixed_norm="self_attn.attn_sub_norm", ffn=replace(GATED, norm="mlp.ffn_sub_norm")),
    replace(LLAMA, family="arcee", ffn=UNGATED),
    replace(
        LLAMA, family="apertus", ffn=UNGATED, attention_norm="attention_layernorm", ffn_norm="feedforward_layernorm"
    ),
    replace(
        LLAMA,
        family="nanochat",
        ffn=FeedForward(output="mlp.fc2", up=Rows("mlp.fc1"), activation="mlp.activation_fn"),
    ),
    replace(GLM, family="phi3", value=Rows("self_attn.qkv_proj", Layout.QUERY_KEY_VALUE)),
    replace(GLM, family="glm4", attention_write="post_self_attn_layernorm", ffn_write="post_mlp_layernorm"),
    replace(GEMMA2, family="gemma3_text"),
    replace(GEMMA4, family="gemma4_unified_text"),
    replace(GEMMA, family="vaultgemma", ffn_norm="pre_feedforward_layernorm"),
    replace(OLMO2, family="olmo3"),
    replace(OLMO2, family="exaone4"),
    replace(GRANITE, family="granite_swa"),
    replace(
        LLAMA,
        family="hyperclovax",
        residual_multiplier="residual_multiplier",
        logit_multiplier="logits_scaling",
        variants=(Variant("use_post_norm", True, {"attention_write": "post_norm1", "ffn_write": "post_norm2"}),),
    ),
)
