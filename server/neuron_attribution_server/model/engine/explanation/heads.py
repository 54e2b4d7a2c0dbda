"""The strongest heads of a group of rows, with what they take from each position."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from neuron_attribution.neurons import Head
from neuron_attribution.results import HeadPosition
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.host import (
    Array,
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
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.keys import layer_spans
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.rows import Row

HELD, OTHER_HELD = 1 << 24, 1 << 28
"""Numbers of source positions' vectors that are held at once, on a CPU and elsewhere, but for those of one head."""


@dataclass(frozen=True, slots=True)
class HeadOfRow:
    """A head to detail at a row of a group."""

    row: int
    head: Head


class HeadDetails:
    """Position scores and attention weights of some heads of any rows, scored together."""

    def __init__(
        self,
        weights: Weights,
        states: RowStates,
        scale: Tensor,
        pooled: PooledIncreases,
        chosen: Sequence[HeadOfRow],
        sequences: Ids,
    ) -> None:
        """`sequences` are those of the rows of the states."""
        self.chosen = sorted(chosen, key=lambda each: each.head.layer)
        """In the order of what follows."""
        self.places = {each: place for place, each in enumerate(self.chosen)}
        numbers = [(each.row, each.head.layer, each.head.head) for each in self.chosen]
        rows, self._layers, heads = np.array(numbers, dtype=np.int64).T
        self._weights, self._states = weights, states
        self._length = length = max(states.lengths)
        first, self._which = _distinct(rows if states.gates is not None else sequences[rows], self._layers, heads)
        self._shared = is_shared(len(rows) * length, len(first) * length)
        if not self._shared:
            first = self._which = np.arange(len(rows))
        self._own = rows[first], self._layers[first], heads[first]
        self._at_once = max(1, numbers_held(scale.device) // (length * states.inputs.shape[-1]))
        self._row, self._layer, self._head = columns_on_device([rows, self._layers, heads], scale.device)
        self.attention = states.attention[self._row, self._layer, self._head]
        """The weights of each source position, [C, T]."""
        self._increases = self._ask(scale, pooled)

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

    @property
    def scores(self) -> Tensor:
        """Of each source position, [C, T]; zero beyond those that a row sees."""
        return self._increases().view(self.attention.shape)

    def positions(
        self, rows: Sequence[Row], scores: Array, captured: CapturedStates, projector: Projector, own: Set[HeadOfRow]
    ) -> dict[HeadOfRow, tuple[HeadPosition, ...]]:
        """The three projections at the strongest positions of a row's own heads where it asks, by scores [C, T]."""
        found: dict[HeadOfRow, tuple[HeadPosition, ...]] = {}
        counts = [rows[each.row].options.position_projection_top_k * (each in own) for each in self.chosen]
        for k in sorted(set(counts) - {0}):
            places = [place for place, count in enumerate(counts) if count == k]
            strongest = [_strongest(scores[place], rows[self.chosen[place].row]) for place in places]
            which = np.repeat(np.array(places), [len(each) for each in strongest])
            at = np.concatenate(strongest)
            sequences = np.array([rows[self.chosen[place].row].sequence for place in which])
            vectors = self._three_vectors(captured, which, sequences, at)
            projections = iter(zip(*[projector.vectors(each, k) for each in vectors], strict=True))
            for place, mine in zip(places, strongest, strict=True):
                found[self.chosen[place]] = tuple(HeadPosition(p, *next(projections)) for p in mine.tolist())
        return found

    def _three_vectors(
        self, captured: CapturedStates, which: Ids, sequences: Ids, positions: Ids
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's input, what attention alone wrote into it, and what the head adds, at positions: [K, d] each."""
        sequence, position = columns_on_device([sequences, positions], self.attention.device)
        layers = self._layers[which]
        spans = list(layer_spans(layers))
        inputs = torch.cat([captured.inputs[layer][sequence[span], position[span]] for layer, span in spans]).float()
        attention_only = torch.zeros_like(inputs)
        for layer in range(int(layers[-1])):
            above = slice(int(np.searchsorted(layers, layer, side="right")), None)
            attention_only[above] += captured.attention_writes[layer][sequence[above], position[above]]
        return inputs, attention_only, self._added(which, positions)

    def _added(self, which: Ids, positions: Ids) -> Tensor:
        """What heads add from positions, [K, d], computed again."""
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


def numbers_held(device: torch.device) -> int:
    """Numbers of source positions' vectors that are held at once."""
    return HELD if is_host(device) else OTHER_HELD


def highest_heads(scores: Array, k: int, sign: int) -> list[tuple[Head, float]]:
    """The k heads at one end of scores [L, H], which are not numbers where there is no head."""
    flat = scores.ravel()
    order = np.argsort(-sign * flat, kind="stable")[: min(k, int(np.isfinite(flat).sum()))]
    return [(Head(*divmod(number, scores.shape[1])), float(flat[number])) for number in order.tolist()]


def _distinct(within: Ids, layers: Ids, heads: Ids) -> tuple[Ids, Ids]:
    """Where each head is first within sequences or rows, in ascending layers, and which of these every place is."""
    _, first, which = np.unique(np.stack([layers, heads, within]), axis=1, return_index=True, return_inverse=True)
    return first, which.ravel()


def _strongest(scores: Array, row: Row) -> Ids:
    """The positions of the highest scores [T] that a row asks for."""
    order: Ids = np.argsort(-scores[: row.position + 1], kind="stable")[: row.options.top_k]
    return order
