"""Models that also see or hear, served for text: of their checkpoints the language model alone is kept."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel


def loader_of(config: PreTrainedConfig) -> Any:  # noqa: ANN401 - transformers' automatic classes have no common type
    """The class that loads such a model: not every one that also sees counts as a causal language model."""
    kind = type(config)
    only_sees = kind in AutoModelForImageTextToText._model_mapping and kind not in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if only_sees else AutoModelForCausalLM


def keep_language_model(model: PreTrainedModel) -> None:
    """Let go of what stands beside the language model, and of layers that only run where there is a picture."""
    body: Any = getattr(model, "model", None)
    if hasattr(body, "language_model"):
        for name, _ in list(body.named_children()):
            if name != "language_model":
                setattr(body, name, None)
        body = body.language_model
    if getattr(body, "cross_attention_layers", None):
        _without_cross_attention(body, model.config.get_text_config())


def _without_cross_attention(body: Any, config: PreTrainedConfig) -> None:  # noqa: ANN401 - Mllama's language model
    """Without a picture it passes these layers over. The others are counted through, as in the model it was made of."""
    layers = [layer for number, layer in enumerate(body.layers) if number not in body.cross_attention_layers]
    for number, layer in enumerate(layers):
        layer.layer_idx = layer.self_attn.layer_idx = number
    body.layers = nn.ModuleList(layers)
    body.cross_attention_layers = config.cross_attention_layers = []
    config.num_hidden_layers = len(layers)
