"""The frozen linear model of one prompt's pass.

Attention weights, the scales of all norms, gates and the factors of FFN neurons stay as they were. Then the output is a
linear function of every token's embedding and every bias, through neurons, heads and the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuron_attribution.requests import Subkey
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.tracing.frozen.attention import FrozenAttention, FrozenValues
from neuron_attribution_server.model.tracing.frozen.ffn import FfnPart, ffn_parts


@dataclass(frozen=True, slots=True, eq=False)
class FrozenLayer:
    """One layer: attention, and an FFN whose constant is what it writes beside its neurons, [d], [T, d] or None."""

    attention: FrozenAttention
    ffn: Sequence[FfnPart]
    ffn_constant: Tensor | None
    parallel: bool
    """Whether the FFN reads the layer's input, as attention does."""


@dataclass(frozen=True, slots=True, eq=False)
class FrozenModel:
    """L layers at T positions, and what goes into the first one: the tokens' embeddings, [T, d]."""

    layers: Sequence[FrozenLayer]
    values: Mapping[int, FrozenValues]
    """By the layer that makes them."""
    embeddings: Tensor

    @property
    def length(self) -> int:
        """T."""
        return len(self.embeddings)


def frozen_model(view: ModelView, captured: CapturedStates, subkey: Subkey) -> FrozenModel:
    """The frozen model of the only sequence of a pass, every position of which was an explained row."""
    length = captured.lengths[0]
    inputs = [states[0, :length].float() for states in captured.inputs]
    values: dict[int, FrozenValues] = {}
    layers = []
    for number, layer in enumerate(checked(view.layers)):
        made = view.value_layers[number]
        if made == number or made not in values:
            values[made] = FrozenValues.of(view.layers[made], inputs[made])
        scales = captured.attention_scales[number][0, :length] if captured.attention_scales else None
        gates = captured.gates[number] if captured.gates else None
        attention = FrozenAttention.of(layer, captured.attention_rows[number][..., :length], gates, scales, made)
        base = layer.ffn_base(inputs[number], captured.attention_writes[number][0, :length])
        routing = captured.routings[number].at((0, slice(length))) if number in captured.routings else None
        behind = captured.ffn_scales[number][0, :length] if layer.ffn_write.norm is not None else None
        parts = [each[0, :length].float() for each in captured.part_scales.get(number, ())]
        ffn = ffn_parts(layer, base, routing, (behind, parts), subkey)
        bias = layer.ffn.bias(layer.ffn_norm.normed(base), routing)
        layers.append(FrozenLayer(attention, ffn, layer.ffn_write.constant(bias, behind), layer.parallel))
    return FrozenModel(layers, values, inputs[0])
