"""The strongest heads of a group of rows, with what they take from each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.neurons import Head
from neuron_attribution.results import HeadPosition, HeadScore, Scores
from torch import Tensor

from neuron_attribution_server.model.attribution.objectives import Objective
from neuron_attribution_server.model.attribution.ranking import all_scored
from neuron_attribution_server.model.attribution.states import RowStates, Weights
from neuron_attribution_server.model.attribution.value_scores import position_vectors
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.rows import Row


@dataclass(frozen=True, slots=True, eq=False)
class _RowHeads:
    """The heads to detail at one row: layers [C], heads [C], and what they add from each position, [C, T, d]."""

    layers: Tensor
    heads: Tensor
    vectors: Tensor


class HeadDetails:
    """Position scores and attention weights of some heads of each row, scored together."""

    def __init__(
        self, weights: Weights, states: RowStates, scale: Tensor, objective: Objective, chosen: Sequence[list[Head]]
    ) -> None:
        self._states = states
        self._rows = [_row_heads(weights, states, row, heads) for row, heads in enumerate(chosen)]
        bases = objective.values.shape[1]
        folded = [
            (weights.unembedding.fold(row.vectors) / scale[index]).flatten(0, 1) for index, row in enumerate(self._rows)
        ]
        indices = [
            (row.layers + index * bases).repeat_interleave(row.vectors.shape[1]) for index, row in enumerate(self._rows)
        ]
        scores = objective.increases(torch.cat(folded), torch.cat(indices))
        self._scores = [
            part.view(row.vectors.shape[:2])
            for row, part in zip(self._rows, scores.split([len(part) for part in folded]), strict=True)
        ]
        self._chosen = [{head: place for place, head in enumerate(heads)} for heads in chosen]

    def head(self, row: int, head: Head, score: float) -> HeadScore:
        """One head's result."""
        place = self._chosen[row][head]
        attention = self._states.attention[row, head.layer, head.head, : self._states.lengths[row]]
        return HeadScore(head, score, _array(self._scores[row][place]), _array(attention))

    def positions(
        self, row: Row, index: int, head: Head, count: int, k: int, captured: CapturedStates, projector: Projector
    ) -> tuple[HeadPosition, ...]:
        """The three projections at the head's strongest positions."""
        place = self._chosen[index][head]
        positions = all_scored(self._scores[index][place], count).ids
        inputs = captured.inputs[head.layer][row.sequence, positions].float()
        attention_only = torch.zeros_like(inputs)
        for writes in captured.attention_writes[: head.layer]:
            attention_only += writes[row.sequence, positions]
        vectors = torch.cat([inputs, attention_only, self._rows[index].vectors[place, positions]])
        projections = iter(projector.vectors(vectors, k))
        triples = zip(*[[next(projections) for _ in positions] for _ in range(3)], strict=True)
        return tuple(HeadPosition(p, *triple) for p, triple in zip(positions.tolist(), triples, strict=True))


def highest_heads(scores: Tensor, k: int, sign: int) -> list[tuple[Head, float]]:
    """The k heads at one end of scores [L, H]."""
    ranked = all_scored(sign * scores.flatten(), k)
    pairs = zip(ranked.ids.tolist(), (sign * ranked.scores).tolist(), strict=True)
    return [(Head(*divmod(head, scores.shape[1])), score) for head, score in pairs]


def _row_heads(weights: Weights, states: RowStates, row: int, heads: Sequence[Head]) -> _RowHeads:
    device = states.attention.device
    layers = torch.tensor([head.layer for head in heads], dtype=torch.long, device=device)
    numbers = torch.tensor([head.head for head in heads], dtype=torch.long, device=device)
    return _RowHeads(layers, numbers, position_vectors(weights, states, row, layers, numbers))


def _array(tensor: Tensor) -> Scores:
    array: Scores = tensor.cpu().numpy()
    return array
