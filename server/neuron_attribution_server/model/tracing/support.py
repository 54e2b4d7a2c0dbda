"""Which models can be traced: those whose layers are linear once attention weights, scales and factors are frozen."""

from __future__ import annotations

from neuron_attribution.errors import FailedPreconditionError

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.packed.modules import has_packed_experts


def why_untraceable(view: ModelView) -> str | None:
    """What of a model the frozen linear model cannot hold; None where it holds everything."""
    for number, layer in enumerate(view.layers):
        reason = _of_layer(layer)
        if reason is not None:
            return f"layer {number} {reason}"
    return None


def check_traceable(view: ModelView) -> None:
    """Raise FailedPreconditionError where a model cannot be traced."""
    reason = why_untraceable(view)
    if reason is not None:
        raise FailedPreconditionError(f"{view.spec.family} models cannot be traced: {reason}", reason="NOT_TRACEABLE")


def _of_layer(layer: LayerView) -> str | None:
    mixers = [mixer.value for mixer in layer.parts.mixers]
    if not layer.has_attention or len(mixers) > 1:
        what = " and ".join(mixers) or "nothing"
        return f"mixes positions by {what}, where only attention has weights that can be frozen"
    if layer.ffn.experts is not None and has_packed_experts(layer.ffn.experts.module):
        return "has experts whose matrices stay packed, which gradients would keep unpacked, all at once"
    if layer.also_written_module is not None:
        return "writes beside its FFN what no neuron writes (per-layer inputs)"
    if layer.ffn.dense is not None and layer.ffn.dense.norm is not None and layer.ffn.dense.norm.centred:
        return "centres its FFN neurons before the output projection"
    reading = layer.values_of.value_reading
    if reading.norm is not None and reading.norm.centred:
        return "centres its value vectors"
    return None
