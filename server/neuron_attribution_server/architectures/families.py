"""The supported architectures."""

from neuron_attribution_server.architectures.spec import ArchitectureSpec, NormKind, Rows

LLAMA = ArchitectureSpec(
    family="llama",
    layers="model.layers",
    final_norm="model.norm",
    norm=NormKind.RMS,
    attention_norm="input_layernorm",
    attention_output="self_attn.o_proj",
    value=Rows("self_attn.v_proj"),
    ffn_norm="post_attention_layernorm",
    ffn_output="mlp.down_proj",
    up=Rows("mlp.up_proj"),
    gate=Rows("mlp.gate_proj"),
    activation="mlp.act_fn",
)

GPT2 = ArchitectureSpec(
    family="gpt2",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    norm=NormKind.LAYER,
    attention_norm="ln_1",
    attention_output="attn.c_proj",
    value=Rows("attn.c_attn", block=2, blocks=3),
    ffn_norm="ln_2",
    ffn_output="mlp.c_proj",
    up=Rows("mlp.c_fc"),
    gate=None,
    activation="mlp.act",
)

FAMILIES: dict[str, ArchitectureSpec] = {spec.family: spec for spec in (LLAMA, GPT2)}
