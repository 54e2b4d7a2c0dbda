"""Reads a transformers model through its architecture's spec: with its layers, the only code that touches modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Neuron
from neuron_attribution.requests import LayerPart, LayerPartKind
from neuron_attribution.results import ModelSizes
from torch import Tensor, nn
from transformers import PreTrainedModel

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.layers.layer_modules import head_sizes, value_rows
from neuron_attribution_server.model.architectures.norms import norm_view
from neuron_attribution_server.model.architectures.projections import HeadSizes, bias_of, weight_of
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
        if len(set(getattr(self.config, "num_attention_heads_per_layer", None) or ())) > 1:
            raise FailedPreconditionError(
                "model refused: its layers have different numbers of heads", reason="UNSUPPORTED_ARCHITECTURE"
            )
        self.value_layers = _value_layers(modules, self.spec, self.config)
        """The layer that makes the values which each layer's heads mix."""
        unembedding = model.get_output_embeddings()
        self.unembedding: Tensor = weight_of(unembedding).contiguous()
        """W_U in the model's own type, [vocabulary, d]."""
        self.layers = _layer_views(modules, self.spec, self.config, self.value_layers, self.unembedding[:0])
        self.heads = self.layers[0].common
        """What the heads of every layer fit in."""
        self.unembedding_bias = bias_of(unembedding)
        self.final_norm_module = model.get_submodule(self.spec.final_norm)
        self.final_norm = norm_view(self.final_norm_module, self.spec)
        self.sizes = _sizes(self.layers, self.heads, self.unembedding)

    @property
    def body(self) -> nn.Module:
        """What makes final states of token ids: the language model but for its unembedding."""
        return self.model.get_submodule(self.spec.layers.rpartition(".")[0])

    @property
    def uses_experts_interface(self) -> bool:
        """Whether routed experts can be recorded through transformers' experts interface."""
        return bool(self.sizes.experts) and self.spec.experts_router is None

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
        multiplier = getattr(self.config, spec.logit_multiplier) if spec.logit_multiplier else None
        multiplier = 1.0 if multiplier is None else multiplier
        return float(multiplier / getattr(self.config, spec.logit_divisor) if spec.logit_divisor else multiplier)

    @property
    def logit_cap(self) -> float | None:
        """The c of the soft-cap c tanh(logits / c), or None."""
        cap = getattr(self.config, self.spec.logit_cap, None)
        return None if cap is None else float(cap)

    @cached_property
    def norms_attention_writes(self) -> bool:
        """Whether any layer norms what attention writes."""
        return any(layer.attention_write.norm is not None for layer in self.layers)

    @cached_property
    def norms_ffn_writes(self) -> bool:
        """Whether any layer norms what the FFN writes."""
        return any(layer.ffn_write.norm is not None for layer in self.layers)

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

    @property
    def is_recurrent(self) -> bool:
        """Whether some layers mix positions by recurrence."""
        return self.spec.recurrence is not None

    def check_heads(self, layer: int, field: str) -> None:
        """Raise InvalidArgumentError where a layer has no heads."""
        if self.layers[layer].has_attention:
            return
        parts = self.layers[layer].parts
        what = f"mixes positions by a {parts.mixers[0].value}" if parts.mixers else "only has a feed-forward network"
        with_heads = [number for number, each in enumerate(self.layers) if each.has_attention]
        raise InvalidArgumentError.of(
            field,
            f"layer {layer} has no heads: it {what}; layers with heads are {', '.join(map(str, with_heads))}",
            reason="OUT_OF_RANGE",
        )

    def check_part(self, part: LayerPart, field: str) -> None:
        """Raise InvalidArgumentError where a layer does not have what is named."""
        layer = self.layers[part.layer]
        found = layer.ffn.width if part.kind is LayerPartKind.FFN else layer.attention_width + layer.recurrence_width
        if not found:
            what = "feed-forward network" if part.kind is LayerPartKind.FFN else "attention, nor what stands for it"
            raise InvalidArgumentError.of(field, f"layer {part.layer} has no {what}", reason="OUT_OF_RANGE")

    def ffn_unit(self, neuron: FfnNeuron, field: str = "neurons") -> int:
        """The number of an FFN neuron in its layer. Raises InvalidArgumentError where there is none such."""
        try:
            return self.layers[neuron.layer].ffn.unit(neuron.expert, neuron.index)
        except LookupError as error:
            raise InvalidArgumentError.of(
                field, f"{neuron} does not exist; layer {neuron.layer} has {error}", reason="OUT_OF_RANGE"
            ) from None

    def attention_unit(self, neuron: AttentionNeuron, field: str = "neurons") -> int:
        """The number of an attention neuron in its layer. Raises InvalidArgumentError where there is none."""
        self.check_heads(neuron.layer, field)
        size = self.layers[neuron.layer].sizes.head_size
        if neuron.index >= size:
            valid = f"neurons 0 to {size - 1} in each head"
            raise InvalidArgumentError.of(
                field, f"{neuron} does not exist; layer {neuron.layer} has {valid}", reason="OUT_OF_RANGE"
            )
        return neuron.head * self.heads.head_size + neuron.index

    def unit(self, neuron: Neuron, field: str = "neurons") -> int:
        """The number of a neuron among those of its kind in its layer. Raises InvalidArgumentError."""
        if isinstance(neuron, FfnNeuron):
            return self.ffn_unit(neuron, field)
        return self.attention_unit(neuron, field)

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


def _layer_views(
    modules: Sequence[nn.Module],
    spec: ArchitectureSpec,
    config: Any,  # noqa: ANN401 - a family's own class
    value_layers: Sequence[int],
    nothing: Tensor,
) -> list[LayerView]:
    """Every layer, with what it has in common with the others and what those behind it do to the residual stream."""
    sizes = [
        head_sizes(module, modules[made], spec, config) for module, made in zip(modules, value_layers, strict=True)
    ]
    if not modules:
        raise AttributeError("there are no layers")
    known = [each for each in sizes if each is not None]
    if not known:
        raise FailedPreconditionError(
            "model refused: none of its layers has attention", reason="UNSUPPORTED_ARCHITECTURE"
        )
    common, remaining, layers = HeadSizes.common(known), 1.0, list[LayerView]()
    for number, module in enumerate(modules):
        made = value_layers[number]
        values_of = None if made == number else layers[made]
        layers.append(LayerView(module, spec, config, (sizes[number] or common, common), nothing, values_of))
    for layer in reversed(layers):
        remaining *= layer.stream_scalar
        layer.remaining = remaining
    return layers


def _value_layers(modules: Sequence[nn.Module], spec: ArchitectureSpec, config: Any) -> list[int]:  # noqa: ANN401
    """Each layer itself, or the last before it that has values and is of its type."""
    if spec.value_sharing is None:
        return list(range(len(modules)))
    types, last, found = getattr(config, spec.value_sharing), dict[str, int](), list[int]()
    for number, (module, kind) in enumerate(zip(modules, types, strict=True)):
        if value_rows(module, spec) is not None:
            last[kind] = number
        if kind not in last:
            raise AttributeError(f"no layer before layer {number} has the values that it mixes")
        found.append(last[kind])
    return found


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
