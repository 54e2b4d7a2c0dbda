"""Reads a transformers model through its architecture's spec: with its layers, the only code that touches modules."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.results import ModelSizes
from torch import Tensor, nn
from transformers import PreTrainedModel

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.norms import norm_view
from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    bias_of,
    key_value_heads,
    shape_of,
    weight_of,
)
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec

UNKNOWN_LENGTH = 2048
"""The tokens that a model takes whose configuration does not say how many."""
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the longest sequence of a batch."""


class ModelView:
    """A model's layers, final norm and unembedding, with its sizes."""

    def __init__(self, model: PreTrainedModel, spec: ArchitectureSpec) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.spec = _inside(model, _for_config(spec, self.config))
        modules = list(model.get_submodule(self.spec.layers).children())
        heads = _head_sizes(modules[0], self.spec, self.config)
        self.layers = [LayerView(module, self.spec, heads, self.config) for module in modules]
        unembedding = model.get_output_embeddings()
        self.unembedding: Tensor = weight_of(unembedding).contiguous()
        """W_U in the model's own type, [vocabulary, d]."""
        self.unembedding_bias = bias_of(unembedding)
        self.final_norm_module = model.get_submodule(self.spec.final_norm)
        self.final_norm = norm_view(self.final_norm_module, self.spec)
        self.sizes = _sizes(self.layers, heads, self.unembedding)

    @property
    def device(self) -> torch.device:
        """Where scoring happens, and token ids go in."""
        return self.unembedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights and activations."""
        return self.model.dtype

    @property
    def logit_multiplier(self) -> float:
        """What the model multiplies its logits by."""
        spec = self.spec
        multiplier = getattr(self.config, spec.logit_multiplier) if spec.logit_multiplier else 1.0
        return float(multiplier / getattr(self.config, spec.logit_divisor) if spec.logit_divisor else multiplier)

    @property
    def logit_cap(self) -> float | None:
        """The c of the soft-cap c tanh(logits / c), or None."""
        cap = getattr(self.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    @property
    def maximum_tokens(self) -> int:
        """The longest sequence the model was made for; where positions have no end, the length it was trained at."""
        lengths = (
            getattr(self.config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length")
        )
        return int(next((length for length in lengths if length is not None), UNKNOWN_LENGTH))

    @property
    def gated(self) -> bool:
        """Whether every FFN neuron has a gate."""
        return all(layer.ffn.gated for layer in self.layers)

    @property
    def depends_on_length(self) -> bool:
        """Whether a longer sequence in the same batch changes what a shorter one computes."""
        kinds = getattr(self.config, "rope_parameters", None) or {}
        nested = [kinds, *(kind for kind in kinds.values() if isinstance(kind, dict))]
        return any(kind.get("rope_type") in LENGTH_DEPENDENT for kind in nested)

    def ffn_unit(self, neuron: FfnNeuron, field: str = "neurons") -> int:
        """The number of an FFN neuron in its layer. Raises InvalidArgumentError where there is none such."""
        try:
            return self.layers[neuron.layer].ffn.unit(neuron.expert, neuron.index)
        except LookupError as error:
            raise InvalidArgumentError.of(
                field, f"{neuron} does not exist; layer {neuron.layer} has {error}", reason="OUT_OF_RANGE"
            ) from None

    def ffn_neuron(self, layer: int, unit: int) -> FfnNeuron:
        """The FFN neuron with this number in its layer."""
        expert, index = self.layers[layer].ffn.name(unit)
        return FfnNeuron(layer, index, expert)


def _for_config(spec: ArchitectureSpec, config: Any) -> ArchitectureSpec:  # noqa: ANN401 - a family's own class
    for variant in spec.variants:
        if getattr(config, variant.attribute, None) == variant.value:
            spec = dataclasses.replace(spec, **variant.changes)
    return spec


def _inside(model: PreTrainedModel, spec: ArchitectureSpec) -> ArchitectureSpec:
    """The spec with its paths where they are in a model that sees pictures too: in its language model."""
    if not hasattr(getattr(model, "model", None), "language_model"):
        return spec
    layers, final_norm = (
        f"model.language_model.{path.removeprefix('model.')}" for path in (spec.layers, spec.final_norm)
    )
    return dataclasses.replace(spec, layers=layers, final_norm=final_norm)


def _head_sizes(layer: nn.Module, spec: ArchitectureSpec, config: Any) -> HeadSizes:  # noqa: ANN401
    heads = config.num_attention_heads
    head_size = shape_of(layer.get_submodule(spec.attention_output))[1] // heads
    rows = shape_of(layer.get_submodule(spec.value.module))[0]
    return HeadSizes(heads, key_value_heads(rows, spec.value.layout, heads, head_size), head_size)


def _sizes(layers: list[LayerView], heads: HeadSizes, unembedding: Tensor) -> ModelSizes:
    vocabulary, hidden_size = unembedding.shape
    experts = [layer.ffn.experts for layer in layers if layer.ffn.experts is not None]
    return ModelSizes(
        layers=len(layers),
        heads=heads.heads,
        key_value_heads=heads.key_value_heads,
        head_size=heads.head_size,
        ffn_width=max((layer.ffn.dense.width for layer in layers if layer.ffn.dense is not None), default=0),
        hidden_size=hidden_size,
        vocabulary=vocabulary,
        experts=max((each.count for each in experts), default=0),
        expert_width=max((each.width for each in experts), default=0),
    )
