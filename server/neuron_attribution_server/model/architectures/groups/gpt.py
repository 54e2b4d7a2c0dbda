"""GPT-2 and those that came after it: ungated, with LayerNorm, values often in one matrix with queries and keys."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.spec import (
    ArchitectureSpec,
    FeedForward,
    Layout,
    NormKind,
    Rows,
    Variant,
)

GPT2 = ArchitectureSpec(
    family="gpt2",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    norm=NormKind.LAYER,
    attention_norm="ln_1",
    attention_output="attn.c_proj",
    value=Rows("attn.c_attn", Layout.QUERY_KEY_VALUE),
    ffn_norm="ln_2",
    ffn=FeedForward(output="mlp.c_proj", up=Rows("mlp.c_fc"), activation="mlp.act"),
)

GPT_NEOX = ArchitectureSpec(
    family="gpt_neox",
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    norm=NormKind.LAYER,
    attention_norm="input_layernorm",
    attention_output="attention.dense",
    value=Rows("attention.query_key_value", Layout.PER_HEAD),
    ffn_norm="post_attention_layernorm",
    ffn=FeedForward(output="mlp.dense_4h_to_h", up=Rows("mlp.dense_h_to_4h"), activation="mlp.act"),
    variants=(Variant("use_parallel_residual", True, {"parallel": True}),),
)

GPTJ = ArchitectureSpec(
    family="gptj",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    norm=NormKind.LAYER,
    attention_norm="ln_1",
    attention_output="attn.out_proj",
    attention_weights="attn",
    value=Rows("attn.v_proj"),
    ffn_norm="ln_1",
    ffn=FeedForward(output="mlp.fc_out", up=Rows("mlp.fc_in"), activation="mlp.act"),
    parallel=True,
)

GPT_NEO = replace(
    GPT2,
    family="gpt_neo",
    attention_output="attn.attention.out_proj",
    attention_weights="attn.attention",
    value=Rows("attn.attention.v_proj"),
)

BLOOM = ArchitectureSpec(
    family="bloom",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    norm=NormKind.LAYER,
    attention_norm="input_layernorm",
    attention_output="self_attention.dense",
    attention_weights="self_attention",
    value=Rows("self_attention.query_key_value", Layout.PER_HEAD),
    ffn_norm="post_attention_layernorm",
    ffn=FeedForward(output="mlp.dense_4h_to_h", up=Rows("mlp.dense_h_to_4h"), activation="mlp.gelu_impl"),
)

FALCON = ArchitectureSpec(
    family="falcon",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    norm=NormKind.LAYER,
    attention_norm="input_layernorm",
    attention_output="self_attention.dense",
    attention_weights="self_attention",
    value=Rows("self_attention.query_key_value", Layout.PER_HEAD),
    ffn_norm="post_attention_layernorm",
    ffn=FeedForward(output="mlp.dense_4h_to_h", up=Rows("mlp.dense_h_to_4h"), activation="mlp.act"),
    adds_in_place=True,
    variants=(
        Variant("multi_query", True, {"value": Rows("self_attention.query_key_value", Layout.QUERY_KEY_VALUE)}),
        Variant("parallel_attn", True, {"parallel": True, "ffn_norm": "input_layernorm"}),
        Variant(
            "new_decoder_architecture",
            True,
            {"value": Rows("self_attention.query_key_value", Layout.PER_GROUP), "parallel": True},
        ),
        Variant("num_ln_in_parallel_attn", 2, {"attention_norm": "ln_attn", "ffn_norm": "ln_mlp"}),
    ),
)

MPT = ArchitectureSpec(
    family="mpt",
    layers="transformer.blocks",
    final_norm="transformer.norm_f",
    norm=NormKind.LAYER,
    attention_norm="norm_1",
    attention_output="attn.out_proj",
    attention_weights="attn",
    value=Rows("attn.Wqkv", Layout.QUERY_KEY_VALUE),
    value_clip="attn_config.clip_qkv",
    ffn_norm="norm_2",
    ffn=FeedForward(output="ffn.down_proj", up=Rows("ffn.up_proj"), activation="ffn.act"),
)

GPT_FAMILIES = (
    GPT2,
    GPT_NEOX,
    GPTJ,
    GPT_NEO,
    BLOOM,
    FALCON,
    MPT,
    replace(
        GPT2,
        family="ctrl",
        final_norm="transformer.layernorm",
        attention_norm="layernorm1",
        attention_output="multi_head_attention.dense",
        value=Rows("multi_head_attention.Wv"),
        ffn_norm="layernorm2",
        ffn=FeedForward(output="ffn.2", up=Rows("ffn.0"), activation="ffn.1"),
    ),
    replace(GPTJ, family="codegen", value=Rows("attn.qkv_proj", Layout.FOUR_BLOCKS)),
    replace(
        GPT2,
        family="gpt_bigcode",
        value=Rows("attn.c_attn", Layout.PER_HEAD),
        variants=(Variant("multi_query", True, {"value": Rows("attn.c_attn", Layout.QUERY_KEY_VALUE)}),),
    ),
)
