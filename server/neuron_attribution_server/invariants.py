"""What must hold before a model is served: measured on a probe at load, refused by name where it does not.

Errors are the largest absolute difference relative to the largest value. A wrong module path, a wrong slice of a fused
projection or a lost attention mask shows here instead of in somebody's results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.results import Invariant
from torch import Tensor
from transformers import PreTrainedModel

from neuron_attribution_server.architectures.model_view import LayerView, ModelView
from neuron_attribution_server.attribution.unembedding import Unembedding
from neuron_attribution_server.capture import ATTENTION_KEY, SMALLEST_PASS, CapturedStates, ExplainedRows, capture

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
        self.states: CapturedStates = capture(view, tokens.tolist(), rows)
        self.logits = _eager_logits(view.model, tokens)[0].float()

    def layers(self) -> Iterable[tuple[int, LayerView]]:
        """Every layer with its number."""
        return enumerate(self.view.layers)


def measure(view: ModelView, unembedding: Unembedding) -> tuple[Invariant, ...]:
    """Measure every invariant. Raises FailedPreconditionError naming those that fail."""
    with torch.inference_mode():
        probe = Probe(view, unembedding)
        tolerance = TOLERANCES[view.dtype]
        found = tuple(
            Invariant(name, (check.__doc__ or "").split("\n")[0], check(probe), tolerance)
            for name, check in INVARIANTS.items()
        )
    failed = [each for each in found if not each.error <= each.tolerance]
    if failed:
        reasons = "; ".join(f"{each.name} is off by {each.error:.2g} (allowed {each.tolerance:.0e})" for each in failed)
        raise FailedPreconditionError(
            f"model refused: it does not work as the {view.spec.family} architecture says: {reasons}",
            reason="INVARIANT_FAILED",
        )
    return found


def _forward_parity(probe: Probe) -> float:
    """The recorded forward pass, read through the final norm and unembedding, gives the model's own eager logits."""
    finals = probe.states.inputs[-1][0].float()
    unembedding = probe.unembedding
    logits = unembedding.logits(unembedding.fold(finals) / unembedding.scale(finals)[:, None])
    return _error(logits if unembedding.constant is None else logits + unembedding.constant, probe.logits)


def _residual_additivity(probe: Probe) -> float:
    """Each layer adds exactly what its attention and its FFN write to the residual stream."""
    inputs, writes = probe.states.inputs, (probe.states.attention_writes, probe.states.ffn_writes)
    sums = [
        (inputs[layer].float() + writes[0][layer].float() + writes[1][layer].float(), inputs[layer + 1].float())
        for layer, _ in probe.layers()
    ]
    return max(_error(*pair) for pair in sums)


def _attention_identity(probe: Probe) -> float:
    """Attention weights times value vectors are the input of the attention output projection."""
    return max(_error(_heads(probe, layer), probe.states.head_outputs[layer].float()) for layer, _ in probe.layers())


def _attention_neurons(probe: Probe) -> float:
    """Attention neurons and the bias add up to what attention writes."""
    return max(
        _error(
            _sum(probe.states.head_outputs[number], layer.attention_subvalues, layer.attention_bias),
            probe.states.attention_writes[number][0].float(),
        )
        for number, layer in probe.layers()
    )


def _ffn_neurons(probe: Probe) -> float:
    """FFN neurons and the bias add up to what the FFN writes."""
    return max(
        _error(
            _sum(probe.states.coefficients[number], layer.ffn_subvalues, layer.ffn_bias),
            probe.states.ffn_writes[number][0].float(),
        )
        for number, layer in probe.layers()
    )


def _value_keys(probe: Probe) -> float:
    """The value projection's rows, read through the norm before attention, give the value vectors."""
    return max(_error(*_values(probe, number, layer)) for number, layer in probe.layers())


def _ffn_keys(probe: Probe) -> float:
    """The FFN's input rows, read through the norm before the FFN, give its neurons' coefficients."""
    return max(
        _error(_coefficients(probe, number, layer), probe.states.coefficients[number].float())
        for number, layer in probe.layers()
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
    return float((measured - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _eager_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The model's own logits by transformers' plain attention, which shares nothing with the recording."""
    model.set_attn_implementation("eager")
    try:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    finally:
        model.set_attn_implementation(ATTENTION_KEY)
    return logits


def _heads(probe: Probe, layer: int) -> Tensor:
    """Sum over positions of attention times value, [T, H * D]."""
    attention = probe.states.attention_rows[layer]
    values = probe.states.values[layer][0].float()
    repeated = values.repeat_interleave(attention.shape[1] // values.shape[0], 0)
    return torch.einsum("ehp,hpk->ehk", attention, repeated).flatten(1)


def _sum(coefficients: Tensor, subvalues: Tensor, bias: Tensor | None) -> Tensor:
    total = coefficients.float() @ subvalues.float()
    return total if bias is None else total + bias


def _values(probe: Probe, number: int, layer: LayerView) -> tuple[Tensor, Tensor]:
    normed = layer.attention_norm.normed(probe.states.inputs[number][0].float())
    return layer.value_vectors(normed), probe.states.values[number][0].float().transpose(0, 1).flatten(1)


def _coefficients(probe: Probe, number: int, layer: LayerView) -> Tensor:
    residual = (probe.states.inputs[number][0] + probe.states.attention_writes[number][0]).float()
    return layer.ffn_inputs(layer.ffn_norm.normed(residual))
