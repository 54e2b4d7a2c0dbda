"""What must hold before a model is served: measured on a probe at load, refused by name where it does not.

Errors are the largest absolute difference relative to the largest value. A wrong module path, a wrong slice of a fused
projection or a lost attention mask shows here instead of in somebody's results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.results import Invariant
from torch import Tensor

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.capture.capture import SMALLEST_PASS, capture, set_plain, set_recordable
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows

PROBE_LENGTH = SMALLEST_PASS
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}

Check = Callable[["Probe"], float]


class Probe:
    """A short fixed sequence, everything captured at every position, and the model's own eager logits."""

    def __init__(self, view: ModelView, unembedding: Unembedding) -> None:
        self.view = view
        self.unembedding = unembedding
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(view.sizes.vocabulary, (1, PROBE_LENGTH), generator=generator).to(view.device)
        rows = ExplainedRows.from_counts([list(range(PROBE_LENGTH))], view.device)
        with _also_written(view) as also:
            self.states: CapturedStates = capture(view, tokens.tolist(), rows)
        self.also_written: dict[int, Tensor] = also
        """What layers write with their FFN that none of its neurons writes, [T, d]."""
        self.logits = _eager_logits(view, tokens)[0].float()

    def layers(self) -> Iterable[tuple[int, LayerView]]:
        """Every layer with its number."""
        return enumerate(self.view.layers)

    def ffn_reads(self, number: int) -> Tensor:
        """What a layer's FFN reads by the spec, [T, d]."""
        inputs, writes = self.states.inputs[number][0], self.states.attention_writes[number][0]
        return self.view.layers[number].ffn_reads(inputs, writes)


@contextmanager
def _also_written(view: ModelView) -> Iterator[dict[int, Tensor]]:
    """What is seen while the model runs, by layer."""
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[..., None]:
        return lambda _module, _args, output: found.update({number: output[0].to(view.device).float()})

    modules = [(number, layer.also_written_module) for number, layer in enumerate(view.layers)]
    handles = [module.register_forward_hook(keep(number)) for number, module in modules if module is not None]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def measure(view: ModelView, unembedding: Unembedding, room: float = 1) -> tuple[Invariant, ...]:
    """Measure every invariant, of whose tolerances a `room`th is allowed.

    Raises FailedPreconditionError naming those that fail.
    """
    with torch.inference_mode():
        probe = Probe(view, unembedding)
        tolerance = TOLERANCES[view.dtype] / room
        found = tuple(
            Invariant(name, (check.__doc__ or "").split("\n")[0], check(probe), tolerance)
            for name, check in INVARIANTS.items()
        )
    failed = [each for each in found if not each.error <= each.tolerance]
    if failed:
        reasons = "; ".join(f"{each.name} is off by {each.error:.2g} (allowed {each.tolerance:.0e})" for each in failed)
        remedy = "" if view.dtype is torch.float32 else "; rounding may be the cause: try --dtype float32"
        raise FailedPreconditionError(
            f"model refused: it does not work as the {view.spec.family} architecture says: {reasons}{remedy}",
            reason="INVARIANT_FAILED",
        )
    return found


def _forward_parity(probe: Probe) -> float:
    """The recorded forward pass, read through the final norm and unembedding, gives the model's own eager logits."""
    return _error(probe.unembedding.own_logits(probe.states.inputs[-1][0].float()), probe.logits)


def _residual_additivity(probe: Probe) -> float:
    """Each layer adds exactly what its attention and its FFN write to the residual stream."""
    inputs, writes = probe.states.inputs, (probe.states.attention_writes, probe.states.ffn_writes)
    sums = [
        (inputs[layer].float() + writes[0][layer].float() + writes[1][layer].float(), inputs[layer + 1].float())
        for layer, _ in probe.layers()
    ]
    return max(_error(*pair) for pair in sums)


def _attention_identity(probe: Probe) -> float:
    """Attention weights times value vectors, gated where there are gates, are the output projection's input."""
    if len(probe.states.attention_rows) != len(probe.view.layers):
        return float("inf")  # some layer attends that should not, or the other way round
    return max(
        (
            _error(_heads(probe, number), probe.states.head_outputs[number].float())
            for number, layer in probe.layers()
            if layer.has_attention
        ),
        default=0.0,
    )


def _attention_neurons(probe: Probe) -> float:
    """Attention neurons, the bias and what a mixer beside attention writes add up to what attention writes."""
    return max((_error(*_attention_sum(probe, *each)) for each in probe.layers() if each[1].has_attention), default=0.0)


def _ffn_neurons(probe: Probe) -> float:
    """FFN neurons and the bias add up to what the FFN writes."""
    return max((_error(*_ffn_sum(probe, *each)) for each in probe.layers() if each[1].ffn.width), default=0.0)


def _value_keys(probe: Probe) -> float:
    """The value projection's rows, read through the norm before attention, give the value vectors."""
    return max((_error(*_values(probe, *each)) for each in probe.layers() if each[1].has_attention), default=0.0)


def _ffn_keys(probe: Probe) -> float:
    """The FFN's input rows, read through the norm before the FFN, give its neurons' coefficients."""
    return max(
        (_error(*_coefficients(probe, number)) for number, layer in probe.layers() if layer.ffn.width), default=0.0
    )


INVARIANTS: dict[str, Check] = {
    "forward_parity": _forward_parity,
    "residual_additivity": _residual_additivity,
    "attention_identity": _attention_identity,
    "attention_neurons": _attention_neurons,
    "ffn_neurons": _ffn_neurons,
    "value_keys": _value_keys,
    "ffn_keys": _ffn_keys,
}


def _error(measured: Tensor, expected: Tensor) -> float:
    if measured.shape != expected.shape:
        return float("inf")  # heads of other numbers or sizes than the spec says
    return float((measured - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _eager_logits(view: ModelView, tokens: Tensor) -> Tensor:
    """The model's own logits by transformers' plain attention and experts, which share nothing with the recording."""
    set_plain(view)
    try:
        logits: Tensor = view.model(input_ids=tokens, use_cache=False).logits.to(view.device)
    finally:
        set_recordable(view)
    return logits


def _heads(probe: Probe, layer: int) -> Tensor:
    """Sum over positions of attention times value, gated, [T, H * D]."""
    attention = probe.states.attention_rows[layer]
    values = probe.states.values[layer][0].float()
    repeated = values.repeat_interleave(attention.shape[1] // values.shape[0], 0)
    mixed = torch.einsum("ehp,hpk->ehk", attention, repeated).flatten(1)
    return mixed * probe.states.gates[layer] if probe.states.gates else mixed


def _attention_sum(probe: Probe, number: int, layer: LayerView) -> tuple[Tensor, Tensor]:
    scales = _scales(probe.states.attention_scales, number)
    total = layer.attention_subvalues.weighted(probe.states.head_outputs[number].float())
    constant = layer.attention_write.constant(layer.attention_bias, scales)
    written = _written(total, constant, scales) + probe.states.beside_attention.get(number, 0.0)
    return written, probe.states.attention_writes[number][0].float()


def _ffn_sum(probe: Probe, number: int, layer: LayerView) -> tuple[Tensor, Tensor]:
    scales = _scales(probe.states.ffn_scales, number)
    total = layer.ffn_subvalues.weighted(probe.states.coefficients[number].float())
    routing = probe.states.routings.get(number)
    bias = layer.ffn.bias(probe.ffn_reads(number), None if routing is None else routing.at(0))
    written = _written(total, layer.ffn_write.constant(bias, scales), scales)
    if number in probe.also_written:
        written = written + layer.ffn_write.multiplier * probe.also_written[number]
    return written, probe.states.ffn_writes[number][0].float()


def _scales(scales: list[Tensor], number: int) -> Tensor | None:
    return scales[number][0] if scales else None


def _written(total: Tensor, constant: Tensor | None, scales: Tensor | None) -> Tensor:
    """Neurons' sum [T, d], through the norm behind it where there is one, and what is written beside them."""
    scaled = total if scales is None else total / scales[:, None]
    return scaled if constant is None else scaled + constant


def _values(probe: Probe, number: int, layer: LayerView) -> tuple[Tensor, Tensor]:
    source = layer.values_of
    normed = source.attention_reads(probe.states.inputs[probe.view.value_layers[number]][0])
    values = source.value_vectors(normed).unflatten(-1, (-1, source.sizes.head_size)).transpose(0, 1)
    return layer.common.of_values(values), probe.states.values[number][0].float()


def _coefficients(probe: Probe, number: int) -> tuple[Tensor, Tensor]:
    """By the rows of single neurons, as the query scores read them, against what the forward pass recorded.

    Last positions come first: no coefficient may depend on what stands beside it.
    """
    order = torch.arange(PROBE_LENGTH, device=probe.view.device).flip(0)
    computed = probe.states.ffn_coefficients(probe.view, number, (0, order))
    return computed, probe.states.coefficients[number].float()[..., order, :]
