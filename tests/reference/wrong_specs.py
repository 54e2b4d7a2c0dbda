"""Descriptions that are wrong in one thing each, by the invariant that refuses them."""

from __future__ import annotations

from dataclasses import replace

import torch
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, Layout, NormKind, Rows

from reference.tiny_families import TINY_FAMILIES

_LLAMA = FAMILIES["llama"]
_SWAPPED = replace(_LLAMA.ffn, up=_LLAMA.ffn.gate, gate=_LLAMA.ffn.up)
_UNWEIGHED = replace(FAMILIES["qwen2_moe"].shared_ffn, weight=None)
WRONG_SPECS: dict[str, tuple[str, dict[str, object]]] = {
    "forward_parity": ("llama", {"norm": NormKind.LAYER}),
    "forward_parity by the factor of logits": ("cohere", {"logit_multiplier": None}),
    "residual_additivity": ("granite", {"residual_multiplier": None}),
    "residual_additivity by the write": ("gemma3_text", {"attention_write": None}),
    "residual_additivity by what else is written": ("granitemoeshared", {"expert_outputs": ("block_sparse_moe",)}),
    "residual_additivity by a mixer's factor": (
        "falcon_h1",
        {"recurrence": replace(FAMILIES["falcon_h1"].recurrence, multiplier=None)},
    ),
    "residual_additivity without a mixer": (
        "bamba",
        {"recurrence": replace(FAMILIES["bamba"].recurrence, output="mamba.another")},
    ),
    "residual_additivity by a layer's factor": ("gemma4_text", {"stream_scalar": None}),
    "residual_additivity by what no neuron writes": ("gemma4_text", {"ffn_also_writes": None}),
    "attention_identity": ("gptj", {"value": Rows("attn.k_proj")}),
    "attention_identity of a fused projection": ("codegen", {"value": Rows("attn.qkv_proj", Layout.PER_HEAD)}),
    "attention_identity without its gate": ("afmoe", {"attention_gate": None}),
    "attention_identity without the norm of mixed heads": ("bitnet", {"mixed_norm": None}),
    "attention_identity by the gate's function": (
        "laguna",
        {"attention_gate": replace(FAMILIES["laguna"].attention_gate, activation=torch.sigmoid)},
    ),
    "ffn_neurons by a norm inside the FFN": ("axk1", {"ffn_write": None}),
    "attention_neurons": ("gemma3_text", {"norm_offset": 0.0}),
    "ffn_neurons": ("mixtral", {"ffn_norm": "input_layernorm"}),
    "ffn_neurons of a shared expert": (
        "qwen2_moe",
        {"shared_ffn": _UNWEIGHED},
    ),
    "ffn_neurons by the experts' factor": ("laguna", {"expert_multiplier": None}),
    "ffn_neurons of experts that are weighed first": ("llama4_text", {"shared_ffn": None}),
    "ffn_neurons of parts with norms of their own": ("gemma4_text, experts", {"part_writes": None}),
    "ffn_neurons of experts that read another norm": ("gemma4_text, experts", {"experts_norm": None}),
    "value_keys": ("llama", {"value": Rows("self_attn.k_proj")}),
    "value_keys of a fused projection": ("phi3", {"value": Rows("self_attn.qkv_proj", Layout.PER_GROUP)}),
    "value_keys by the values' factor": ("mimo_v2_flash", {"value_multiplier": None}),
    "value_keys by the norm": ("gpt2", {"attention_norm": "ln_2"}),
    "value_keys by the norm of values": ("gemma4_text", {"value_norm": None}),
    "ffn_keys": ("llama", {"ffn": _SWAPPED}),
    "ffn_keys without the norm of the neurons": ("bitnet", {"ffn": _LLAMA.ffn}),
    "ffn_keys by the norm": ("llama", {"ffn_norm": "input_layernorm"}),
    "ffn_keys by what it reads": ("gpt_neox", {"variants": ()}),
    "ffn_keys by the norms of layers with a mixer": (
        "olmo_hybrid",
        {"recurrence": replace(FAMILIES["olmo_hybrid"].recurrence, changes={})},
    ),
    "ffn_keys by the gate's factor": (
        "falcon_h1",
        {"ffn": replace(FAMILIES["falcon_h1"].ffn, gate_multiplier=None)},
    ),
    "value_keys by the factor of what attention reads": ("falcon_h1", {"attention_input_multiplier": None}),
}
"""The tiny model, and what is wrong."""


def wrong_spec(case: str) -> ArchitectureSpec:
    """The family's description with what is wrong."""
    name, wrong = WRONG_SPECS[case]
    return replace(FAMILIES[TINY_FAMILIES[name][0]], **wrong)
