"""The strongest heads of a group of rows, with what they take from each position."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from neuron_attribution.neurons import Head
from neuron_attribution.results import HeadPosition
from torch import Tensor

from neuron_attribution_server.model.attribution.host import (
    Array,
    Ids,
    columns_on_device,
)
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.position_scores import PositionIncreases
from neuron_attribution_server.model.attribution.states import RowStates, Weights
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.keys import layer_spans
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.rows import Row


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
        within = rows if states.gates is not None else sequences[rows]
        self._positions = PositionIncreases(weights, states, scale, pooled, (rows, self._layers, heads), within)
        self.attention = self._positions.attention
        """The weights of each source position, [C, T]."""

    @property
    def scores(self) -> Tensor:
        """Of each source position, [C, T]; zero beyond those that a row sees."""
        return self._positions.increases

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
        return inputs, attention_only, self._positions.vectors(which, positions)


def highest_heads(scores: Array, k: int, sign: int) -> list[tuple[Head, float]]:
    """The k heads at one end of scores [L, H], which are not numbers where there is no head."""
    flat = scores.ravel()
    order = np.argsort(-sign * flat, kind="stable")[: min(k, int(np.isfinite(flat).sum()))]
    return [(Head(*divmod(number, scores.shape[1])), float(flat[number])) for number in order.tolist()]


def _strongest(scores: Array, row: Row) -> Ids:
    """The positions of the highest scores [T] that a row asks for."""
    order: Ids = np.argsort(-scores[: row.position + 1], kind="stable")[: row.options.top_k]
    return order
