"""What rows that are taken together add up to, as one explanation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from neuron_attribution.neurons import Head, Neuron
from neuron_attribution.requests import Part
from neuron_attribution.results import (
    AGGREGATE_RANKINGS,
    AggregateExplanation,
    Coverage,
    HeadScore,
    LayerScores,
    NeuronRanking,
    NeuronScore,
    Projection,
)

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Array
from neuron_attribution_server.model.attribution.search.summed_search import FoundSum
from neuron_attribution_server.model.attribution.search.value_search import Kind
from neuron_attribution_server.model.engine.explanation.heads import HeadOfRow
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.sums.whole_rows import Ends, WholeRows
from neuron_attribution_server.model.engine.explanation.value_rankings import named, side

RANKING_FIELDS = dict(zip([(kind, sign) for kind in Kind for sign in (1, -1)], AGGREGATE_RANKINGS, strict=True))
HEAD_FIELDS = {1: "heads", -1: "heads_decreasing"}


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What a group of rows found out, as arrays over its E rows, where it was asked for."""

    predictions: Sequence[Mapping[str, Any]]
    named: Mapping[int, Sequence[NeuronScore]]
    attention: Array | None = None
    """Layer scores, [E, L]."""
    ffn: Array | None = None
    ends: Array | None = None
    """What the layers go from and to, and what they leave, [E, 3]."""
    heads: Array | None = None
    """[E, L, H]"""
    places: Mapping[HeadOfRow, int] | None = None
    """Where a head of a row is in what follows."""
    position_scores: Array | None = None
    """[C, T]"""
    position_attention: Array | None = None


class Totals:
    """The sums of some rows of a group."""

    def __init__(self, view: ModelView, whole: WholeRows, findings: Findings, ends: Ends) -> None:
        self._view, self._whole, self._findings, self._ends = view, whole, findings, ends
        self._rows = range(whole.together.rows.start, whole.together.rows.stop)
        self._own = len(whole.task.explained)
        """Rows of the answer; those of the other one follow."""

    def explanation(self, projector: Projector) -> AggregateExplanation:
        """The explanation of the tokens together."""
        task, weights = self._whole.task, np.abs(self._whole.together.weights)
        parts, predicted = task.summed_parts, [self._findings.predictions[row] for row in self._rows]
        assert task.options.aggregate is not None
        logs = weights * np.array([each["target"].log_probability for each in predicted])
        draft: dict[str, Any] = {
            "log_probability": float(logs[: self._own].sum()),
            "contrast_log_probability": float(logs[self._own :].sum()),
            "targets": tuple(each["target"] for each in predicted[: self._own]),
            "contrast_targets": tuple(each["target"] for each in predicted[self._own :]),
            "contrasts": tuple(each["contrast"] for each in predicted if each["contrast"] is not None),
        }
        if Part.LAYERS in parts:
            draft["layers"] = self._layers()
        if Part.HEADS in parts and self._findings.heads is not None:
            draft["head_scores"] = self._whole.sum(self._findings.heads)
        if Part.HEAD_POSITIONS in parts:
            draft |= {HEAD_FIELDS[sign]: tuple(self._heads(sign)) for sign in self._whole.signs}
        draft |= {RANKING_FIELDS[end]: self._ranking(end[0], found) for end, found in self._ends.items()}
        draft["neurons"] = tuple(self._named())
        positions = tuple(token.position for token in task.explained)
        whole = AggregateExplanation(task.options.aggregate, positions=positions, **draft)
        return _with_projections(projector, whole, task.options.projection_top_k)

    def _layers(self) -> LayerScores:
        attention, ffn, ends = self._findings.attention, self._findings.ffn, self._findings.ends
        assert attention is not None and ffn is not None and ends is not None  # noqa: PT018 - they come together
        add = self._whole.sum
        return LayerScores(add(attention), add(ffn), *add(ends).tolist())

    def _heads(self, sign: int) -> Iterator[HeadScore]:
        scores = self._findings.heads
        assert scores is not None
        for head, score in self._whole.heads(scores, sign):
            own = tuple(scores[self._whole.together.rows, head.layer, head.head].tolist())
            yield HeadScore(head, score, *self._positions(head), token_scores=own)

    def _positions(self, head: Head) -> tuple[Array, Array]:
        """What a head takes from each position, and how it attends to it on average.

        Two sequences have the positions of the prompt alone in common.
        """
        task, found = self._whole.task, self._findings
        assert found.places is not None and found.position_scores is not None  # noqa: PT018
        assert found.position_attention is not None
        length = len(task.prompt) if task.contrast_answer else task.explained[-1].position + 1
        at = [found.places[HeadOfRow(row, head)] for row in self._rows]
        weights = self._whole.together.weights
        counts = self._own, len(self._rows) - self._own
        means = np.repeat([1 / self._own, -1 / max(1, counts[1])], counts)
        scores = weights @ found.position_scores[at, :length].astype(np.float64)
        attention = means @ found.position_attention[at, :length].astype(np.float64)
        return scores.astype(np.float32), attention.astype(np.float32)

    def _ranking(self, kind: Kind, found: FoundSum) -> NeuronRanking:
        neurons, ids = found.neurons, found.ranked.ids
        placed = kind is Kind.ATTENTION and not self._whole.task.sums_over_positions
        columns = zip(
            named(self._view, kind, neurons.locate(ids)),
            found.ranked.scores.tolist(),
            found.scores.T,
            found.coefficients.T,
            strict=True,
        )
        scored = tuple(
            _summed(neuron, score, position if placed else None, *by_token)
            for (neuron, position), score, *by_token in columns
        )
        total = neurons.total(0)
        return NeuronRanking(scored, Coverage(total, total, found.ranked.scored, found.exact))

    def _named(self) -> Iterator[NeuronScore]:
        """The neurons that are asked for, from what they do at each row."""
        if not self._whole.task.options.neurons:
            return
        for same in zip(*(self._findings.named[row] for row in self._rows), strict=True):
            scores, coefficients = (
                np.array([getattr(each, name) for each in same]) for name in ("score", "coefficient")
            )
            total = float(self._whole.together.weights @ scores.astype(np.float64))
            yield _summed(same[0].neuron, total, None, scores, coefficients)


def _summed(neuron: Neuron, score: float, position: int | None, scores: Array, coefficients: Array) -> NeuronScore:
    """A neuron with what it does at each row; it promotes what it does where it counts most."""
    mostly = float((np.abs(scores) * np.sign(coefficients)).sum())
    return NeuronScore(
        neuron,
        score,
        position,
        promoted_side=side(mostly),
        token_scores=tuple(scores.tolist()),
        token_coefficients=tuple(coefficients.tolist()),
    )


def _with_projections(projector: Projector, whole: AggregateExplanation, k: int) -> AggregateExplanation:
    if not k:
        return whole
    rankings = {name: getattr(whole, name) for name in AGGREGATE_RANKINGS}
    asked = {name: ranking for name, ranking in rankings.items() if ranking is not None}
    every = [score.neuron for ranking in asked.values() for score in ranking.neurons]
    found = projector.subvalues([*every, *(score.neuron for score in whole.neurons)], k)
    changed: dict[str, Any] = {
        name: replace(ranking, neurons=_projected(ranking.neurons, found)) for name, ranking in asked.items()
    }
    return replace(whole, **changed, neurons=_projected(whole.neurons, found))


def _projected(scores: Sequence[NeuronScore], found: Mapping[Neuron, Projection]) -> tuple[NeuronScore, ...]:
    return tuple(replace(score, projection=found[score.neuron]) for score in scores)
