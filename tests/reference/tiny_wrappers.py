"""Tiny models that also see: what is beside the language models of reference.tiny_families."""

from __future__ import annotations

from typing import Any

import torch
from neuron_attribution_server.model.loading.text_only import loader_of
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

Facts = dict[str, Any]
_GEMMA = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_QWEN = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32}
_QWEN3 = _QWEN | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
_MLLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "attention_heads": 2,
    "intermediate_size": 16,
    "vision_output_dim": 32,
    "image_size": 8,
    "patch_size": 4,
    "max_num_tiles": 1,
    "intermediate_layers_indices": [0],
    "supported_aspect_ratios": [[1, 1]],
}
_LLAMA4 = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vision_output_dim": 16,
    "image_size": 8,
    "patch_size": 4,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
}
_GEMMA_TOKENS = {"image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94}

WRAPPERS: dict[str, tuple[str, Facts, Facts]] = {
    "gemma3": ("gemma3_text", _GEMMA | {"image_size": 8, "patch_size": 4}, _GEMMA_TOKENS),
    "gemma4": ("gemma4_text", _GEMMA | {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}, {}),
    "gemma4_unified": (
        "gemma4_unified_text",
        {"patch_size": 4, "mm_embed_dim": 16, "mm_posemb_size": 16, "output_proj_dims": 16},
        {},
    ),
    "llama4": ("llama4_text", _LLAMA4, {}),
    "mllama": ("mllama_text_model", _MLLAMA, {}),
    "qwen2_vl": (
        "qwen2_vl_text",
        {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
        {},
    ),
    "qwen2_5_vl": ("qwen2_5_vl_text", _QWEN | {"fullatt_block_indexes": [0]}, {}),
    "qwen3_vl": ("qwen3_vl_text", _QWEN3, {}),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", _QWEN3, {}),
}
"""Per type: the family of its language model, what it sees with, and its own facts."""


def with_eyes(kind: str, text: Facts) -> PreTrainedModel:
    """A whole model of a type, around a language model with these facts."""
    return AutoModelForImageTextToText.from_config(_config(kind, text), dtype=torch.float32).eval()


def for_text(kind: str, text: Facts) -> PreTrainedModel:
    """The same as it is loaded for text."""
    config = _config(kind, text)
    return loader_of(config).from_config(config, dtype=torch.float32).eval()


def _config(kind: str, text: Facts) -> Any:
    _, vision, own = WRAPPERS[kind]
    tied = {"tie_word_embeddings": text["tie_word_embeddings"]}
    return AutoConfig.for_model(kind, text_config=text, vision_config=vision, **tied, **own)
