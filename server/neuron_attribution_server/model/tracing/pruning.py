"""What a graph keeps of the edges among its nodes, and how much of the output that holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuron_attribution_server.model.attribution.host import Array


@dataclass(frozen=True, slots=True)
class KeptEdge:
    """What a source, a column, gives a target, a row, and its magnitude's share of all that the target is given."""

    source: int
    target: int
    contribution: float
    share: float


def kept_edges(contributions: Array, magnitudes: Array, share: float, most: int) -> list[KeptEdge]:
    """The largest of each target's contributions [B, S], until they are a share of its magnitudes [B].

    At most so many of a target, each behind the larger ones.
    """
    return [edge for row in range(len(contributions)) for edge in _of(row, contributions, magnitudes, share, most)]


def _of(row: int, contributions: Array, magnitudes: Array, share: float, most: int) -> Iterator[KeptEdge]:
    sizes, wanted, reached = np.abs(contributions[row]), share * magnitudes[row], 0.0
    for source in np.argsort(-sizes, kind="stable")[:most].tolist():
        if not sizes[source] or reached >= wanted:
            return
        reached += sizes[source]
        yield KeptEdge(source, row, float(contributions[row, source]), float(sizes[source] / magnitudes[row]))


def carried(edges: Sequence[KeptEdge], activations: Sequence[float], layers: Sequence[int]) -> float:
    """What paths carry to the output, the first target, from sources that are no targets.

    Activations of the targets; layers of those behind the first, whose sources have the first numbers, in their order.
    """
    incoming: dict[int, list[KeptEdge]] = {}
    for edge in edges:
        incoming.setdefault(edge.target, []).append(edge)
    flows, total = [activations[0], *[0.0] * len(layers)], 0.0
    for target in [0, *sorted(range(1, len(flows)), key=lambda number: -layers[number - 1])]:
        for edge in incoming.get(target, ()) if flows[target] and activations[target] else ():
            flow = edge.contribution / activations[target] * flows[target]
            if edge.source < len(layers):
                flows[1 + edge.source] += flow
            else:
                total += flow
    return total
