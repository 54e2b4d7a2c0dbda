"""What heads take from each source position: of a long text these are many vectors, and few are held at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.host import (
    Ids,
    columns_on_device,
    is_host,
    numbers_at_once,
    on_device,
)
from neuron_attribution_server.model.attribution.objectives import Multiples, Vectors, is_shared
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.states import RowStates, Weights
from neuron_attribution_server.model.attribution.subvalues import join
from neuron_attribution_server.model.attribution.value_scores import position_vectors

HELD, OTHER_HELD = 1 << 24, 1 << 28
"""Numbers of source positions' vectors that are held at once, on a CPU and elsewhere, but for those of one head."""


def numbers_held(device: torch.device) -> int:
    """Numbers of source positions' vectors that are held at once."""
    return HELD if is_host(device) else OTHER_HELD


class PositionIncreases:
    """The increases of an objective by what C heads of any rows take from each of T source positions."""

    def __init__(
        self,
        weights: Weights,
        states: RowStates,
        scale: Tensor,
        pooled: PooledIncreases,
        places: tuple[Ids, Ids, Ids],
        within: Ids,
    ) -> None:
        """`places` are rows, layers and heads, [C] each; the layers ascend.

        Where `within` [C] is the same, a head's vectors are the same but for what mixes them.
        """
        rows, layers, heads = places
        self._weights, self._states = weights, states
        self._length = length = max(states.lengths)
        first, self._which = _distinct(within, layers, heads)
        self._shared = is_shared(len(rows) * length, len(first) * length)
        if not self._shared:
            first = self._which = np.arange(len(rows))
        self._own = rows[first], layers[first], heads[first]
        self._at_once = max(1, numbers_held(scale.device) // (length * states.inputs.shape[-1]))
        self._row, self._layer, self._head = columns_on_device([rows, layers, heads], scale.device)
        self.attention = states.attention[self._row, self._layer, self._head]
        """The weights of each source position, [C, T]."""
        self._increases = self._ask(scale, pooled)

    @property
    def increases(self) -> Tensor:
        """Of each source position, [C, T]; zero beyond those that a row sees."""
        return self._increases().view(self.attention.shape)

    def vectors(self, which: Ids, positions: Ids) -> Tensor:
        """What some of the heads add from one position each, [K, d], computed again."""
        own = self._which[which]
        added = self._states.inputs.new_empty(len(which), self._states.inputs.shape[-1])
        for group in checked(self._groups()):
            mine = np.flatnonzero((own >= group.start) & (own < group.stop))
            if not len(mine):
                continue
            at, head, position = columns_on_device([mine, own[mine] - group.start, positions[mine]], added.device)
            added[at] = self._vectors(group)[head, position]
        if self._shared:
            place, position = columns_on_device([which, positions], added.device)
            row, layer, head = (column[place] for column in (self._row, self._layer, self._head))
            added *= self._states.mixing[row, layer, head, position, None]
        return added

    def _ask(self, scale: Tensor, pooled: PooledIncreases) -> Callable[[], Tensor]:
        """What gives the increases [C * T] later, together with what else is asked for; of very many in turn."""
        groups = self._groups()
        if len(groups) == 1:
            return self._ask_group(groups[0], slice(None), scale, pooled)
        found = torch.empty(len(self._which), self._length, device=scale.device)
        for own in checked(groups):
            mine = on_device(np.flatnonzero((self._which >= own.start) & (self._which < own.stop)), scale.device)
            found[mine] = self._ask_group(own, mine, scale, pooled)().view(-1, self._length)
        return found.flatten

    def _ask_group(
        self, own: slice, mine: Tensor | slice, scale: Tensor, pooled: PooledIncreases
    ) -> Callable[[], Tensor]:
        """The same of those whose vectors are `own`."""
        row, layer, length = self._row[mine], self._layer[mine], self._length
        bases = (row * pooled.objective.values.shape[1] + layer)[:, None].expand(len(row), length).flatten()
        held = self._vectors(own)
        folded = join([self._weights.unembedding.fold(some) for some in checked(held.split(self._step))], 0)
        del held
        if self._shared:
            which = on_device(self._which, scale.device)[mine] - own.start
            places = which[:, None] * length + torch.arange(length, device=scale.device)
            factors = self._states.mixing[row, layer, self._head[mine]] / scale[row, None]
            vectors: Vectors = Multiples(folded.flatten(0, 1), places.flatten(), factors.flatten())
        else:
            vectors = folded.div_(scale[row, None, None]).flatten(0, 1)
        return pooled.ask(vectors, bases, weak=True)

    def _groups(self) -> list[slice]:
        """The distinct heads whose vectors are held at once."""
        count = len(self._own[0])
        return [slice(start, min(start + self._at_once, count)) for start in range(0, count, self._at_once)]

    @property
    def _step(self) -> int:
        """How many heads' vectors are computed between two checkpoints."""
        return max(1, numbers_at_once(self.attention.device) // (self._length * self._states.inputs.shape[-1]))

    def _vectors(self, own: slice) -> Tensor:
        """What some distinct heads add from each source position, [., T, d]; where they are shared, before mixing."""
        parts = [slice(start, min(start + self._step, own.stop)) for start in range(own.start, own.stop, self._step)]
        return join(
            [
                position_vectors(
                    self._weights, self._states, *(column[some] for column in self._own), mixed=not self._shared
                )
                for some in checked(parts)
            ],
            0,
        )


def _distinct(within: Ids, layers: Ids, heads: Ids) -> tuple[Ids, Ids]:
    """Where each head is first within sequences or rows, in ascending layers, and which of these every place is."""
    _, first, which = np.unique(np.stack([layers, heads, within]), axis=1, return_index=True, return_inverse=True)
    return first, which.ravel()
