"""Projections that were asked for before, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from neuron_attribution.neurons import Neuron
from neuron_attribution.results import Projection

REMEMBERED_TOKENS = 1 << 20
"""Projected tokens kept; one takes about 230 bytes."""


class RememberedProjections:
    """Projections by neuron and the number of tokens at either end, up to `capacity` tokens in all."""

    def __init__(self, capacity: int = REMEMBERED_TOKENS) -> None:
        self._capacity = capacity
        self._found: OrderedDict[tuple[Neuron, int], Projection] = OrderedDict()
        self.tokens = 0

    def get(self, neuron: Neuron, k: int) -> Projection | None:
        """The projection, if it is still there."""
        found = self._found.get((neuron, k))
        if found is not None:
            self._found.move_to_end((neuron, k))
        return found

    def put(self, neuron: Neuron, k: int, projection: Projection) -> None:
        """Keep a projection, unless it is there: work that went first may have put it."""
        if (neuron, k) in self._found:
            return
        self._found[neuron, k] = projection
        self.tokens += _tokens(projection)
        while self.tokens > self._capacity:
            self.tokens -= _tokens(self._found.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
        self.tokens = 0


def _tokens(projection: Projection) -> int:
    return len(projection.top) + len(projection.bottom)
