"""A feed-forward network by what its modules took and gave: its neurons' coefficients, rows and names."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from reference.experts import RoutedExperts, clamped
from reference.found_norms import measured_norm, norm_after, traced
from reference.recording import Call, Recording, columns, is_experts, is_linear, matrix, ratio, same
from reference.weights import Norm

CLAMPED = 1.702, 1.0
"""The slope and the limit of tiny models."""


def find_experts(calls: list[Call]) -> RoutedExperts | None:
    found = [call.module for call in calls if is_experts(call.module)]
    return RoutedExperts(found[0]) if found else None


def ffn_of(
    recording: Recording,
    down: nn.Module | None,
    experts: RoutedExperts | None,
    scope: list[Call],
    experts_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The coefficients [T, N] of every neuron, and what the whole network gives, before a norm, [T, d]."""
    if experts is None:
        assert down is not None
        return recording.of(down).input, recording.of(down).output
    call = recording.of(experts.module)
    routed = experts.coefficients(call)
    if down is None:
        return routed, experts.written(call)
    shared = recording.of(down)
    share = _share(scope, shared)
    parts = [(share * shared.input, share * shared.output)]
    parts += [(experts_factor * routed, experts_factor * experts.written(call))]
    found = []
    for (coefficients, raw), norm in zip(parts, part_norms(scope, shared.output, call.output), strict=True):
        scale = 1 if norm is None else measured_norm(norm.module, raw.shape[-1]).scale(raw)
        found.append((coefficients / scale, raw if norm is None else norm.output))
    return torch.cat([found[0][0], found[1][0]], 1), found[0][1] + found[1][1]


def part_norms(scope: list[Call], shared: Tensor, routed: Tensor) -> tuple[Call | None, Call | None]:
    """What the shared network and the experts pass through before they are added up."""
    return norm_after(scope, shared), norm_after(scope, routed)


def rows_of(recording: Recording, down: nn.Module | None, experts: RoutedExperts | None, scope: list[Call]) -> Tensor:
    """What single neurons write, through norms of the shared network and the experts alone, [N, d]."""
    rows = [] if down is None else [matrix(down).T]
    rows += [] if experts is None else [experts.down()]
    if down is not None and experts is not None:
        norms = part_norms(scope, recording.of(down).output, recording.of(experts.module).output)
        rows = [
            each if norm is None else measured_norm(norm.module, each.shape[1]).fold(each)
            for each, norm in zip(rows, norms, strict=True)
        ]
    return torch.cat(rows)


def experts_factor_of(
    recording: Recording,
    down: nn.Module,
    experts: RoutedExperts,
    scope: list[Call],
    others: list[Tensor],
    written: Tensor,
) -> float:
    """How much more of the routed experts' sum than of the shared expert's output a layer writes, beside others."""
    shared, routed = recording.of(down), experts.written(recording.of(experts.module))
    parts = [_share(scope, shared) * shared.output, routed, *others]
    found = torch.linalg.lstsq(torch.stack([each.flatten() for each in parts], 1), written.flatten()[:, None])
    return round((found.solution[1, 0] / found.solution[0, 0]).item(), 5)


def _share(scope: list[Call], shared: Call) -> Tensor:
    """What weighs the shared expert: a projection to one number, through a sigmoid; or nothing does. [T, 1]"""
    gates = [call for call in scope if is_linear(call.module) and call.output.shape[-1] == 1]
    return torch.sigmoid(gates[-1].output) if gates else torch.ones(len(shared.output), 1, dtype=torch.float64)


def find_keys(
    scope: list[Call], rest: list[Call], down: nn.Module | None, experts: RoutedExperts | None, size: int
) -> tuple[Tensor, Tensor | None, Norm]:
    """The rows of the up and the gate projection, and the norm they read."""
    ups, gates, read = [], [], None
    if down is not None:
        up, gate, read = _dense_keys(rest, down, experts)
        ups.append(up)
        gates.append(gate)
    if experts is not None:
        up, gate = experts.keys()
        ups.append(up)
        gates.append(gate)
        routed = next(call.input for call in rest if call.module is experts.module)
        read = routed if read is None else read
    assert read is not None
    _, norm = traced(scope, ups[0], read, size)
    if len(ups) == 2 and routed.shape == read.shape:
        _, other = traced(scope, ups[1], routed, size)  # experts may read a norm of their own
        ups[1], gates[1] = (rows if rows is None else rows * other.weight / norm.weight for rows in (ups[1], gates[1]))
    gated = all(gate is not None for gate in gates)
    return torch.cat(ups), torch.cat([gate for gate in gates if gate is not None]) if gated else None, norm


def _dense_keys(
    rest: list[Call], down: nn.Module, experts: RoutedExperts | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the activation takes is what the gate gives; what it lacks to the coefficients is what the up row gives."""
    inside = set() if experts is None else set(experts.module.modules())
    outputs = [
        call for call in rest if is_linear(call.module) and call.module is not down and call.output.shape[-1] > 1
    ]
    coefficients = next(call.input for call in rest if call.module is down)
    norm = _norm_of_neurons(rest, outputs, coefficients)
    if norm is not None:
        coefficients = norm.input
    activated = [
        call
        for call in rest
        if not is_linear(call.module)
        and call.module not in inside
        and call is not norm
        and call.input.shape == call.output.shape == coefficients.shape
        and not same(call.input, call.output)
    ]
    if not activated:
        return _keys_without_module(outputs, coefficients)
    call = activated[-1]
    source, rows = _rows_giving(outputs, call.input)
    if same(call.output, coefficients):
        return rows, None, source.input
    _, up = _rows_giving(outputs, coefficients / call.output)
    return up, rows, source.input


def _norm_of_neurons(rest: list[Call], outputs: list[Call], coefficients: Tensor) -> Call | None:
    """What made the coefficients of numbers that no projection gave as they are."""
    made = [call for call in rest if not is_linear(call.module) and same(call.output, coefficients)]
    made = [call for call in made if not same(call.input, coefficients)]
    given = made and any(columns(made[-1].input, each.output) for each in outputs)
    return made[-1] if made and not given else None


def _keys_without_module(outputs: list[Call], coefficients: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Of a network that has no module for its activation: GPT-OSS's of halves, or SiLU between two projections."""
    for call in outputs:
        gate, up = call.output.chunk(2, 1)
        if same(clamped(gate, up, *CLAMPED), coefficients):
            gate_rows, up_rows = matrix(call.module).chunk(2)
            return up_rows, gate_rows, call.input
    alike = [call for call in outputs if call.output.shape == coefficients.shape]
    for gated, plain in itertools.permutations(alike, 2):
        if same(torch.nn.functional.silu(gated.output) * plain.output, coefficients):
            return matrix(plain.module), matrix(gated.module), plain.input
    raise AssertionError("nothing gives the coefficients")


def _rows_giving(outputs: list[Call], wanted: Tensor) -> tuple[Call, Tensor]:
    for call in outputs:
        places = columns(wanted, call.output)
        if places:
            return call, matrix(call.module)[places]
    for call in outputs:
        factor = ratio(wanted, call.output)
        if factor is not None:
            return call, factor * matrix(call.module)
    raise AssertionError("no module gives these numbers")


def ffn_names(down: nn.Module | None, experts: RoutedExperts | None) -> tuple[int, ...]:
    dense = tuple(range(0 if down is None else len(matrix(down).T)))
    return dense if experts is None else (*dense, *experts.names())
