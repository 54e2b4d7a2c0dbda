"""The supported architectures, as data: groups that share most of their facts, and what is different in each family."""

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

GATED = FeedForward(
    output="mlp.down_proj",
    up=Rows("mlp.up_proj"),
    gate=Rows("mlp.gate_proj"),
    activation="mlp.act_fn",
)
FUSED_GATED = FeedForward(
    output="mlp.down_proj",
    up=Rows("mlp.gate_up_proj", Layout.SECOND_HALF),
    gate=Rows("mlp.gate_up_proj", Layout.FIRST_HALF),
    activation="mlp.activation_fn",
)
UNGATED = FeedForward(output="mlp.down_proj", up=Rows("mlp.up_proj"), activation="mlp.act_fn")
ON_THE_LAYER = FeedForward(output="fc2", up=Rows("fc1"), activation="activation_fn")

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

OPT = ArchitectureSpec(
    family="opt",
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    norm=NormKind.LAYER,
    attention_norm="self_attn_layer_norm",
    attention_output="self_attn.out_proj",
    value=Rows("self_attn.v_proj"),
    ffn_norm="final_layer_norm",
    ffn=ON_THE_LAYER,
)

XGLM = replace(OPT, family="xglm", layers="model.layers", final_norm="model.layer_norm", attention_weights="self_attn")

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
COHERE = replace(
    LLAMA,
    family="cohere",
    norm=NormKind.LAYER,
    ffn_norm="input_layernorm",
    parallel=True,
    logit_multiplier="logit_scale",
)
GRANITE = replace(LLAMA, family="granite", residual_multiplier="residual_multiplier", logit_divisor="logits_scaling")
GLM = replace(LLAMA, family="glm", ffn=FUSED_GATED)
LLAMA_LAYER_NORM = replace(LLAMA, family="llama with LayerNorm", norm=NormKind.LAYER)

DENSE = (
    LLAMA,
    GPT2,
    GPT_NEOX,
    GPTJ,
    GPT_NEO,
    BLOOM,
    FALCON,
    MPT,
    OPT,
    XGLM,
    PHI,
    GEMMA,
    GEMMA2,
    OLMO2,
    COHERE,
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
        )
    ),
    replace(GPTJ, family="codegen", value=Rows("attn.qkv_proj", Layout.FOUR_BLOCKS)),
    replace(
        GPT2,
        family="gpt_bigcode",
        value=Rows("attn.c_attn", Layout.PER_HEAD),
        variants=(Variant("multi_query", True, {"value": Rows("attn.c_attn", Layout.QUERY_KEY_VALUE)}),),
    ),
    replace(OPT, family="biogpt", layers="biogpt.layers", final_norm="biogpt.layer_norm"),
    replace(LLAMA, family="arcee", ffn=UNGATED),
    replace(
        LLAMA, family="apertus", ffn=UNGATED, attention_norm="attention_layernorm", ffn_norm="feedforward_layernorm"
    ),
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
    replace(
        LLAMA,
        family="nanochat",
        ffn=FeedForward(output="mlp.fc2", up=Rows("mlp.fc1"), activation="mlp.activation_fn"),
    ),
    replace(GLM, family="phi3", value=Rows("self_attn.qkv_proj", Layout.QUERY_KEY_VALUE)),
    replace(GLM, family="glm4", attention_write="post_self_attn_layernorm", ffn_write="post_mlp_layernorm"),
    replace(GEMMA2, family="gemma3_text"),
    replace(GEMMA, family="vaultgemma", ffn_norm="pre_feedforward_layernorm"),
    replace(OLMO2, family="olmo3"),
    replace(OLMO2, family="exaone4"),
    replace(COHERE, family="cohere2"),
    replace(GRANITE, family="granite_swa"),
    replace(
        LLAMA,
        family="hyperclovax",
        residual_multiplier="residual_multiplier",
        logit_multiplier="logits_scaling",
        variants=(Variant("use_post_norm", True, {"attention_write": "post_norm1", "ffn_write": "post_norm2"}),),
    ),
)

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

EXPERTS = (
    MIXTRAL,
    GRANITE_MOE,
    *(replace(MIXTRAL, family=family) for family in ("qwen3_moe", "olmoe", "gpt_oss", "minimax_m2", "mellum")),
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

FAMILIES: dict[str, ArchitectureSpec] = {spec.family: spec for spec in (*DENSE, *EXPERTS)}
