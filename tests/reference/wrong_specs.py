"""Descriptions that are wrong in one thing each, by the invariant that refuses them."""

from __future__ import annotations

from dataclasses import replace

from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, Layout, NormKind, Rows

_LLAMA = FAMILIES["llama"]
_SWAPPED = replace(_LLAMA.ffn, up=_LLAMA.ffn.gate, gate=_LLAMA.ffn.up)
_UNWEIGHED = replace(FAMILIES["qwen2_moe"].shared_ffn, weight=None)
WRONG_SPECS: dict[str, tuple[str, dict[str, object]]] = {
    "forward_parity": ("llama", {"norm": NormKind.LAYER}),
    "forward_parity by the factor of logits": ("cohere", {"logit_multiplier": None}),
    "residual_additivity": ("granite", {"residual_multiplier": None}),
    "residual_additivity by the write": ("gemma3_text", {"attention_write": None}),
    "residual_additivity by what else is written": ("granitemoeshared", {"expert_outputs": ("block_sparse_moe",)}),
    "attention_identity": ("gptj", {"value": Rows("attn.k_proj")}),
    "attention_identity of a fused projection": ("codegen", {"value": Rows("attn.qkv_proj", Layout.PER_HEAD)}),
    "attention_neurons": ("gemma3_text", {"norm_offset": 0.0}),
    "ffn_neurons": ("mixtral", {"ffn_norm": "input_layernorm"}),
    "ffn_neurons of a shared expert": ("qwen2_moe", {"shared_ffn": _UNWEIGHED}),
    "value_keys": ("llama", {"value": Rows("self_attn.k_proj")}),
    "value_keys of a fused projection": ("phi3", {"value": Rows("self_attn.qkv_proj", Layout.PER_GROUP)}),
    "value_keys by the norm": ("gpt2", {"attention_norm": "ln_2"}),
    "ffn_keys": ("llama", {"ffn": _SWAPPED}),
    "ffn_keys by the norm": ("llama", {"ffn_norm": "input_layernorm"}),
    "ffn_keys by what it reads": ("gpt_neox", {"variants": ()}),
}


def wrong_spec(case: str) -> ArchitectureSpec:
    """The family's description with what is wrong."""
    family, wrong = WRONG_SPECS[case]
    return replace(FAMILIES[family], **wrong)
