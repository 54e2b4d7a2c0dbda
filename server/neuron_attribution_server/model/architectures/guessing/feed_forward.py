"""Feed-forward networks and experts, by which numbers go where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.guessing.trace import Call, LayerTrace, NoGuessError, same
from neuron_attribution_server.model.architectures.spec import FeedForward, Layout, Rows


@dataclass(frozen=True, slots=True, eq=False)
class FeedForwardFacts:
    """What may be a layer's FFN: its dense network or shared expert, its experts, what it reads and writes [T, d]."""

    dense: FeedForward | None
    experts: str | None
    outputs: tuple[str, ...]
    """The modules whose outputs are what experts write."""
    read: Tensor
    written: Tensor


def feed_forward_facts(layer: LayerTrace, attention: str) -> list[FeedForwardFacts]:
    """Every network that may be a layer's FFN, outside the attention output at the path. Raises NoGuessError."""
    inside = attention.rpartition(".")[0]
    calls = [call for call in layer.calls if call.path != attention and not _below(call.path, inside)]
    experts = [call for call in calls if hasattr(call.module, "has_gate") and hasattr(call.module, "down_proj")]
    rest = [call for call in calls if not any(_below(call.path, each.path) for each in experts)]
    dense = [found for call in rest if (found := _dense(rest, call, layer.read.shape[1])) is not None]
    if experts:
        return list(_with_experts(rest, experts[0], dense))
    if not dense:
        raise NoGuessError("no network of its layers is an activation, or that times a projection, before a projection")
    return [FeedForwardFacts(network, None, (), read, down.gave) for network, read, down in dense]


Dense = tuple[FeedForward, Tensor, Call]
"""A network, what it reads, and the call of its output projection."""


def _dense(calls: list[Call], down: Call, size: int) -> Dense | None:
    """The network whose output projection this is."""
    if not down.linear or down.size != size:
        return None
    coefficients = down.read
    for activation in calls:
        shaped = activation.read.shape == activation.gave.shape == coefficients.shape
        if activation.linear or not shaped or same(activation.read, activation.gave):
            continue
        activated = _giving(calls, activation.read)
        if activated is None:
            continue
        first, gate = activated
        if same(activation.gave, coefficients):
            return FeedForward(output=down.path, up=gate, activation=activation.path), first.read, down
        for call, rows, numbers in _parts(calls):
            if rows == gate or numbers.shape != coefficients.shape:
                continue
            if same(activation.gave * numbers, coefficients) and same(call.read, first.read):
                network = FeedForward(output=down.path, up=rows, gate=gate, activation=activation.path)
                return network, first.read, down
    return None


def _parts(calls: list[Call]) -> Iterator[tuple[Call, Rows, Tensor]]:
    """What projections give, whole and by halves."""
    for call in calls:
        if call.linear:
            yield call, Rows(call.path), call.gave
            if call.size % 2 == 0:
                half = call.size // 2
                yield call, Rows(call.path, Layout.FIRST_HALF), call.gave[:, :half]
                yield call, Rows(call.path, Layout.SECOND_HALF), call.gave[:, half:]


def _giving(calls: list[Call], numbers: Tensor) -> tuple[Call, Rows] | None:
    return next(((call, rows) for call, rows, given in _parts(calls) if same(given, numbers)), None)


def _with_experts(calls: list[Call], experts: Call, dense: list[Dense]) -> Iterator[FeedForwardFacts]:
    """Routed experts, and the network beside them where there is one that reads the same."""
    shared = [each for each in dense if same(each[1], experts.read)]
    networks: list[FeedForward | None] = [None]
    if shared:
        network = shared[0][0]
        weights = [call.path for call in calls if call.linear and call.size == 1 and same(call.read, experts.read)]
        networks = [_weighed(network, each) for each in (*weights, None)]
    around = _around(experts.path, calls)
    beside = [each for each in _around(shared[0][2].path, calls) if each not in around] if shared else []
    choices = [(each,) for each in around] + [(one, other) for one in around for other in beside]
    for outputs in choices:
        parts = [next(call for call in calls if call.path == path).gave for path in outputs if path != experts.path]
        parts += [experts.gave for path in outputs if path == experts.path]
        for network_or_none in networks:
            written = torch.stack(parts).sum(0)
            yield FeedForwardFacts(network_or_none, experts.path, outputs, experts.read, written)


def _weighed(network: FeedForward, weight: str | None) -> FeedForward:
    return FeedForward(
        output=network.output, up=network.up, gate=network.gate, activation=network.activation, weight=weight
    )


def _around(path: str, calls: list[Call]) -> list[str]:
    """The path and those of the modules around it that give one vector a token, the outermost first."""
    names = path.split(".")
    paths = [".".join(names[:end]) for end in range(1, len(names) + 1)]
    size = next((call.size for call in calls if call.path == path), None)
    given = {call.path for call in calls if size in (None, call.size)} | {path}
    return [each for each in paths if each in given]


def _below(path: str, around: str) -> bool:
    return bool(around) and (path == around or path.startswith(around + "."))
