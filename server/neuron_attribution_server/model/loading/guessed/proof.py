"""What a guessed architecture must pass that a described one need not: what the invariants cannot see.

A description was written by somebody who read the model. For a guess, the invariants hold with room, and once more with
some weights enlarged, so that bounds, caps and clamps show that a short text does not reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch
from neuron_attribution.errors import FailedPreconditionError
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.feed_forward import Experts
from neuron_attribution_server.model.architectures.guessing.norms import FITS, formula_error
from neuron_attribution_server.model.architectures.guessing.numbers import clip_names
from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.norms import norm_view
from neuron_attribution_server.model.architectures.projections import HeadSizes, select, weight_of
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows
from neuron_attribution_server.model.loading.invariants import PROBE_LENGTH, Probe, measure
from neuron_attribution_server.model.loading.weights import unembedding_of

ROOM = 10
"""What the invariants allow is divided by this."""
ALLOWED = 1e-3
"""Of errors relative to what a single layer does at a single position, which is little of the largest value."""
ENLARGED = 2.0**4
"""By how much weights are enlarged: a power of two, which is taken back exactly."""
BEYOND = 8
"""How far values are enlarged beyond a bound of them."""


def prove(view: ModelView) -> None:
    """Raises FailedPreconditionError naming what a guess fails at. The model must be in float32."""
    measure(view, unembedding_of(view), ROOM)
    with torch.inference_mode():
        probe = Probe(view, unembedding_of(view))
        errors = {name: check(probe) for name, check in CHECKS.items()}
    failed = [
        f"{name} is off by {error:.2g} (allowed {ALLOWED:.0e})"
        for name, error in errors.items()
        if not error <= ALLOWED
    ]
    if failed:
        raise FailedPreconditionError(
            f"model refused: it does not work as the {view.spec.family} architecture says: {'; '.join(failed)}",
            reason="INVARIANT_FAILED",
        )
    with _enlarged(view, probe.states):
        try:
            measure(view, unembedding_of(view))
        except FailedPreconditionError as error:
            raise FailedPreconditionError(f"{error}, with enlarged weights", reason="INVARIANT_FAILED") from error


def _norm_formulas(probe: Probe) -> float:
    """Every norm follows its formula for large, small and shifted vectors."""
    return max(
        formula_error(module, norm_view(module, probe.view.spec), size) * ALLOWED / FITS
        for module, size in _norms(probe.view)
    )


def _layer_changes(probe: Probe) -> float:
    """What is written is what changes at every position: one token's large numbers hide nothing."""
    states, worst = probe.states, 0.0
    for number, _ in probe.layers():
        written = states.attention_writes[number][0] + states.ffn_writes[number][0]
        change = states.inputs[number + 1][0] - states.inputs[number][0]
        worst = max(worst, float(((change - written).norm(dim=-1) / change.norm(dim=-1)).max()))
    return worst


def _single_positions(probe: Probe) -> float:
    """Neither later tokens nor other sequences of a batch change what a token goes through."""
    view = probe.view
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(view.sizes.vocabulary, (2 * PROBE_LENGTH,), generator=generator).tolist()
    first = tokens[:PROBE_LENGTH]
    alone = _last(view, [first])[0]
    together = _last(view, [first, tokens] if not view.depends_on_length else [first, tokens[PROBE_LENGTH:]])
    compared = together if not view.depends_on_length else together[:1]
    return max(float((each[:PROBE_LENGTH] - alone).abs().max() / alone.abs().max()) for each in compared)


def _expert_gates(probe: Probe) -> float:
    """What routed experts call up is what multiplies: a neuron is linear in it, and needs not be in its gate."""
    found = [layer.ffn.experts for layer in probe.view.layers if layer.ffn.experts is not None]
    return max((_nonlinearity(each) for each in found if each.gated), default=0.0)


CHECKS: dict[str, Callable[[Probe], float]] = {
    "norm_formulas": _norm_formulas,
    "layer_changes": _layer_changes,
    "single_positions": _single_positions,
    "expert_gates": _expert_gates,
}


def _norms(view: ModelView) -> Iterator[tuple[nn.Module, int]]:
    spec, size = view.spec, view.sizes.hidden_size
    yield view.final_norm_module, size
    for layer in view.layers:
        for path in (spec.attention_norm, spec.attention_write, spec.ffn_norm, spec.ffn_write):
            if path is not None:
                yield layer.module.get_submodule(path), size
        if spec.value_latent is not None:
            yield layer.module.get_submodule(spec.value_latent[1]), weight_of(layer.value_module).shape[1]


def _last(view: ModelView, sequences: list[list[int]]) -> Tensor:
    """x_L [B, T, d]."""
    rows = ExplainedRows.from_counts([[0]] * len(sequences), view.device)
    return capture(view, sequences, rows).inputs[-1].float()


def _nonlinearity(experts: Experts) -> float:
    generator = torch.Generator().manual_seed(4)
    gate, up, other = torch.randn(3, 8, experts.width, generator=generator).to(experts.module.down_proj.device) / 2

    def neurons(up: Tensor) -> Tensor:
        parts = [gate, up]
        both = torch.cat(parts, -1) if experts.module.is_concatenated else torch.stack(parts, -1).flatten(1)
        activated: Tensor = experts.module._apply_gate(both)
        return activated

    apart, together = neurons(up) + neurons(other), 2 * neurons((up + other) / 2)
    return float((apart - together).abs().max() / apart.abs().max())


@contextmanager
def _enlarged(view: ModelView, states: CapturedStates) -> Iterator[None]:
    """Values, FFN neurons and logits much larger than they are, by what can be taken back exactly."""
    factor = _value_factor(view, states)
    weights = list(_neuron_weights(view))
    with torch.no_grad():
        _enlarge(view, weights, factor, ENLARGED)
        try:
            yield
        finally:
            _enlarge(view, weights, 1 / factor, 1 / ENLARGED)


def _enlarge(view: ModelView, weights: list[Tensor], values: float, others: float) -> None:
    sizes = HeadSizes(view.sizes.heads, view.sizes.key_value_heads, view.sizes.head_size)
    for layer in view.layers:
        weight = weight_of(layer.value_module)
        rows = select(torch.arange(len(weight)), view.spec.value.layout, sizes).to(weight.device)
        weight[rows] *= values
    for each in (*weights, view.unembedding):
        each.mul_(others)


def _value_factor(view: ModelView, states: CapturedStates) -> float:
    """Enough that values pass every bound that the configuration has."""
    bounds = [float(attrgetter(name)(view.config)) for name in clip_names(view.config)]
    largest = min(float(values.abs().max()) for values in states.values)
    needed = BEYOND * max(bounds, default=0.0) / max(largest, 1e-30)
    return ENLARGED * 2.0 ** max(0, math.ceil(math.log2(max(needed, 1) / ENLARGED)))


def _neuron_weights(view: ModelView) -> Iterator[Tensor]:
    """What FFN neurons are activated by, once each."""
    for layer in view.layers:
        modules = dict.fromkeys(_inputs(view, layer))
        yield from (weight_of(module) for module in modules if module is not layer.value_module)
        if layer.ffn.experts is not None:
            experts = layer.ffn.experts
            yield (experts.module.gate_up_proj if experts.gated else experts.module.up_proj).detach()


def _inputs(view: ModelView, layer: LayerView) -> Iterator[nn.Module]:
    network = view.spec.ffn if layer.ffn.experts is None else view.spec.shared_ffn
    if layer.ffn.dense is not None and network is not None:
        for rows in (network.up, network.gate):
            if rows is not None:
                yield layer.module.get_submodule(rows.module)
