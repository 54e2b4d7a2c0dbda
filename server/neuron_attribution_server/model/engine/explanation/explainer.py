"""Explains rows of captured states: the method's steps in the paper's order, for all rows of a group at once.

1. freeze the final norm's scale and read every base state as log probabilities
2. layers and heads: exact increases
3. value neurons: bound all, score the best, until nothing unscored can be among the top k (the first with the heads)
4. query layers and query FFN neurons of the strongest value neurons
5. project the returned neurons into the vocabulary

Nothing is computed row by row. What the steps decide by comes to the host in one piece each, and what is left at their
end in one: the host seldom waits for a device, and no more often for many rows than for one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from neuron_attribution.neurons import Head
from neuron_attribution.requests import Part, ScoringMethod
from neuron_attribution.results import (
    AggregateExplanation,
    Explanation,
    HeadPosition,
    HeadScore,
    LayerScores,
    NeuronRanking,
    NeuronScore,
)
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.capped_objectives import CappedObjective
from neuron_attribution_server.model.attribution.checkpoints import checkpoint
from neuron_attribution_server.model.attribution.host import Array, on_device, to_host
from neuron_attribution_server.model.attribution.methods import FROM_INCREASE
from neuron_attribution_server.model.attribution.objectives import (
    LogProbability,
    LogProbabilityDifference,
    Objective,
    read_bases,
)
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.search.exact_scores import ExactScores
from neuron_attribution_server.model.attribution.search.static_search import find_static
from neuron_attribution_server.model.attribution.search.value_search import (
    Found,
    Grids,
    Kind,
    LazyRanges,
    ValueSearch,
    Wanted,
)
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.unembedding import normalised
from neuron_attribution_server.model.attribution.value_scores import base_states, head_scores, layer_values
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.activity import Activity
from neuron_attribution_server.model.engine.explanation.heads import HeadDetails, HeadOfRow, highest_heads
from neuron_attribution_server.model.engine.explanation.meanings import with_activity, with_projections
from neuron_attribution_server.model.engine.explanation.named_neurons import NamedNeurons
from neuron_attribution_server.model.engine.explanation.predictions import (
    Predicted,
    most_probable,
    named_predictions,
    own_log_probabilities,
    predicted,
)
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.queries.parts import Queries
from neuron_attribution_server.model.engine.explanation.rows import Row, row_states
from neuron_attribution_server.model.engine.explanation.sources import Sources
from neuron_attribution_server.model.engine.explanation.sums.totals import HEAD_FIELDS, RANKING_FIELDS, Findings, Totals
from neuron_attribution_server.model.engine.explanation.sums.whole_rows import searched, whole_rows
from neuron_attribution_server.model.engine.explanation.value_rankings import (
    PARTS,
    SIGNS,
    merged,
    ranking,
    source_kinds,
    strongest_sources,
    wanted_ranking,
    wanted_rankings,
    wanted_sources,
)
from neuron_attribution_server.tasks.tasks import QUERY_PARTS

_LOG_PROBABILITY_INCREASE = ScoringMethod.LOG_PROBABILITY_INCREASE


@dataclass(frozen=True, slots=True, eq=False)
class Explanations:
    """Explanations by the index of their row, and those of tokens together by the index of their first."""

    explanations: dict[int, Explanation]
    aggregates: dict[int, AggregateExplanation]


class Explainer:
    """Explains groups of rows that share whether they contrast, the scoring method and the constant."""

    def __init__(
        self, view: ModelView, weights: Weights, projector: Projector, ranges: LazyRanges, activity: Activity | None
    ) -> None:
        self._view = view
        self._weights = weights
        self._projector = projector
        self._ranges = ranges
        self._activity = activity

    def explain(self, captured: CapturedStates, rows: Sequence[Row], seconds: SearchSeconds) -> Explanations:
        """Of every row that has one, and of those that are taken together; the searches' time is added to `seconds`."""
        group = _Group(self._view, self._weights, self._projector, self._ranges, captured, rows, seconds)
        own = [index for index, row in enumerate(rows) if row.explained]
        explanations = with_activity(self._activity, [Explanation(**group.draft(index)) for index in own])
        counts = [rows[index].options.projection_top_k for index in own]
        projected = with_projections(self._projector, explanations, counts)
        by_row = {rows[index].index: each for index, each in zip(own, projected, strict=True)}
        return Explanations(by_row, {rows[first].index: whole for first, whole in group.aggregates().items()})


class _Group:
    """The shared steps of a group of rows, and each row's own."""

    def __init__(
        self,
        view: ModelView,
        weights: Weights,
        projector: Projector,
        ranges: LazyRanges,
        captured: CapturedStates,
        rows: Sequence[Row],
        seconds: SearchSeconds,
    ) -> None:
        self._view, self._weights, self._projector = view, weights, projector
        self._captured, self._rows, self._ranges, self._seconds = captured, rows, ranges, seconds
        self._options = rows[0].options
        self._parts = frozenset().union(*(row.options.parts for row in rows))
        self._states = row_states(captured, rows, view.sizes.heads)
        finals = self._states.inputs[:, -1]
        self._scale = self._scales(finals)
        self._bases = base_states(self._states)
        log_probabilities = self._own_log_probabilities(finals)
        self._targets = self._target_ids(log_probabilities)
        self._predicted = self._predict(log_probabilities)
        self._grids = Grids(weights, self._states)
        self._wholes = whole_rows(rows)
        finish_search = self._begin_search()
        self._heads = self._head_scores()
        self._details = self._head_details()
        self._found, self._source = finish_search()
        self._sums = searched(self._search, self._wholes) if self._wholes else []
        self._named_scores = self._score_named()
        self._queries = Queries(view, captured, rows, {kind: self._sources(kind) for kind in Kind})
        self._fetched = self._fetch()
        self._predictions = self._name_predictions()
        self._head_positions = self._project_positions()

    @cached_property
    def _objective(self) -> Objective:
        """What is explained, at every base: attention patterns alone do without."""
        return self._objective_at(self._bases)

    @cached_property
    def _pooled(self) -> PooledIncreases:
        return PooledIncreases(self._objective, self._seconds)

    @cached_property
    def _named(self) -> NamedNeurons:
        return NamedNeurons(self._view, self._grids, ExactScores(self._weights, self._scale, self._pooled))

    def draft(self, index: int) -> dict[str, Any]:
        """One row's explanation as keyword arguments, without projections of neurons."""
        checkpoint()
        row = self._rows[index]
        parts, signs = row.options.parts, SIGNS[row.options.direction]
        draft: dict[str, Any] = {"position": row.position} | self._predictions[index]
        if Part.LAYERS in parts:
            draft["layers"] = self._layer_scores(index)
        if Part.HEADS in parts and self._heads is not None:
            draft["head_scores"] = self._heads[index]
        if Part.ATTENTION_PATTERNS in parts:
            draft["attention_patterns"] = self._fetched["patterns"][index, ..., : row.position + 1]
        if Part.HEAD_POSITIONS in parts:
            draft |= {HEAD_FIELDS[sign]: self._row_heads(index, sign) for sign in signs}
        draft |= self._rankings(index) | self._queries.parts(index, self._fetched)
        return draft | {"neurons": self._named_scores.get(index, ())}

    def aggregates(self) -> dict[int, AggregateExplanation]:
        """The explanations of rows that are taken together, by the first of them."""
        fetched, details = self._fetched, self._details
        findings = Findings(
            predictions=self._predictions,
            named=self._named_scores,
            attention=fetched.get("attention layers"),
            ffn=fetched.get("ffn layers"),
            ends=fetched.get("ends"),
            heads=self._heads,
            places=None if details is None else details.places,
            position_scores=fetched.get("position scores"),
            position_attention=fetched.get("position attention"),
        )
        return {
            whole.together.rows.start: Totals(self._view, whole, findings, ends).explanation(self._projector)
            for whole, ends in zip(self._wholes, self._sums, strict=True)
        }

    def _scales(self, finals: Tensor) -> Tensor:
        """The final norm's scale of each row [E]: its own, or the one it is to be read with."""
        own = self._weights.unembedding.scale(finals)
        given = [row.scale or 0.0 for row in self._rows]
        if not any(given):
            return own
        scales = torch.tensor(given, device=own.device)
        return torch.where(scales > 0, scales, own)

    @cached_property
    def _read(self) -> Tensor:
        return self._read_bases(self._bases)

    def _read_bases(self, bases: Tensor) -> Tensor:
        constant = self._options.include_final_norm_bias
        return read_bases(self._weights.unembedding, bases, self._scale, include_constant=constant)

    def _own_log_probabilities(self, finals: Tensor) -> Tensor:
        """What the model itself predicts, [E, V]: what its last base is read as, where that is read its own way."""
        unembedding, last = self._weights.unembedding, self._view.sizes.layers
        has_own_way = any(row.scale is not None or row.contrast is not None for row in self._rows)
        is_scored = self._parts - {Part.ATTENTION_PATTERNS} or any(
            row.options.neurons or row.whole for row in self._rows
        )
        if has_own_way or not is_scored or unembedding.cap is not None:
            return own_log_probabilities(unembedding, finals)
        if unembedding.constant is None or self._options.include_final_norm_bias:
            return self._read[:, last]
        return normalised(self._read[:, last] + unembedding.constant)

    def _target_ids(self, log_probabilities: Tensor) -> Tensor:
        """The targets [E]: each row's own, or its most probable token."""
        given = on_device(np.array([_id(row.target) for row in self._rows]), self._scale.device)
        if all(row.target is not None for row in self._rows):
            return given
        return torch.where(given < 0, log_probabilities.argmax(-1), given)

    def _predict(self, log_probabilities: Tensor) -> Predicted:
        """Of the target, the contrast and the spaced target, the target where there is none, and the most probable."""
        others = np.array([(_id(row.contrast), _id(row.spaced)) for row in self._rows])
        named, own = on_device(others, self._scale.device), self._targets[:, None]
        tokens = torch.cat([own, torch.where(named < 0, own, named), most_probable(log_probabilities)], 1)
        return predicted(log_probabilities, tokens)

    def _objective_at(self, bases: Tensor) -> Objective:
        unembedding, constant = self._weights.unembedding, self._options.include_final_norm_bias
        contrasts = None
        if self._rows[0].contrast is not None:
            contrasts = on_device(np.array([row.contrast for row in self._rows]), bases.device)
        if unembedding.cap is not None:
            return CappedObjective(unembedding, bases, self._scale, self._targets, contrasts, include_constant=constant)
        if contrasts is None:
            read = self._read if bases is self._bases else self._read_bases(bases)
            return LogProbability(unembedding, read, self._scale, self._targets)
        return LogProbabilityDifference(
            unembedding, bases, self._scale, self._targets, contrasts, include_constant=constant
        )

    def _head_scores(self) -> Array | None:
        """Head scores [E, L, H], where any row asks for them; not a number in layers without heads."""
        if not {Part.HEADS, Part.HEAD_POSITIONS} & self._parts:
            return None
        return self._where_heads_are(to_host([head_scores(self._pooled, self._weights, self._states, self._scale)])[0])

    def _where_heads_are(self, numbers: Array) -> Array:
        """Numbers [E, L, ...] of heads; not a number in layers without any."""
        without = [number for number, layer in enumerate(self._view.layers) if not layer.has_attention]
        if without:
            numbers = numbers.copy()
            numbers[:, without] = np.nan
        return numbers

    def _head_details(self) -> HeadDetails | None:
        chosen = dict.fromkeys(self._own_heads)
        for whole in self._wholes:
            heads, rows = whole.chosen_heads(self._heads), whole.together.rows
            chosen |= dict.fromkeys(HeadOfRow(row, head) for row in range(rows.start, rows.stop) for head in heads)
        if not chosen:
            return None
        sequences = np.array([row.sequence for row in self._rows])
        return HeadDetails(self._weights, self._states, self._scale, self._pooled, list(chosen), sequences)

    @cached_property
    def _own_heads(self) -> frozenset[HeadOfRow]:
        """The heads that rows ask for by themselves."""
        return frozenset(
            HeadOfRow(index, each) for index in range(len(self._rows)) for each in self._chosen_heads(index)
        )

    def _chosen_heads(self, index: int) -> list[Head]:
        options = self._rows[index].options
        if self._heads is None or Part.HEAD_POSITIONS not in options.parts:
            return []
        ends = [highest_heads(self._heads[index], options.head_top_k, sign) for sign in SIGNS[options.direction]]
        return list(dict.fromkeys(head for end in ends for head, _ in end))

    def _begin_search(self) -> Callable[[], tuple[dict[Wanted, Found], dict[Wanted, Found]]]:
        """What gives the rankings that are asked for, and the query parts' sources.

        One search where both use the same score. Its first candidates are scored together with the heads.
        """
        asked, needed = wanted_rankings(self._rows), wanted_sources(self._rows)
        method = self._options.scoring_method
        if method is _LOG_PROBABILITY_INCREASE:
            finish = self._begin(merged(asked, needed))
            return lambda: (finish(),) * 2
        finish_own = self._begin(needed)
        return lambda: (self._by_method(method, asked) if asked else {}, finish_own())

    def _begin(self, wanted: dict[Wanted, int]) -> Callable[[], dict[Wanted, Found]]:
        return self._search.begin(wanted) if wanted else dict

    @cached_property
    def _search(self) -> ValueSearch:
        """By the log probability increase."""
        return self._searching(self._pooled, _LOG_PROBABILITY_INCREASE)

    def _searching(self, pooled: PooledIncreases, method: ScoringMethod) -> ValueSearch:
        return ValueSearch(self._weights, self._grids, self._scale, pooled, method, self._ranges, self._seconds)

    def _by_method(self, method: ScoringMethod, asked: dict[Wanted, int]) -> dict[Wanted, Found]:
        if method not in FROM_INCREASE:
            with self._seconds.scoring():
                return find_static(self._weights, self._grids, self._targets, method, asked)
        pooled = self._pooled
        if method is ScoringMethod.LOG_PROBABILITY:
            pooled = PooledIncreases(self._objective_at(torch.zeros_like(self._bases)), self._seconds)
        return self._searching(pooled, method).begin(asked)()

    def _score_named(self) -> dict[int, tuple[NeuronScore, ...]]:
        asked = {index: row.options.neurons for index, row in enumerate(self._rows) if row.options.neurons}
        return self._named.scores(asked) if asked else {}

    def _sources(self, kind: Kind) -> dict[int, Sources]:
        """The value neurons of a kind that rows' query parts start from, by row: none where only others are named."""
        asking = {index: row for index, row in enumerate(self._rows) if row.options.parts & QUERY_PARTS}
        named = {index: row for index, row in asking.items() if row.options.query_from}
        found = self._named.sources(named, kind) if named else {}
        for index, row in asking.items():
            if kind in source_kinds(row.options):
                best = self._source[Wanted(index, kind, 1, row.options.exhaustive)]
                found[index] = strongest_sources(best, kind, row.options.query_sources, row.position)
        return {index: sources for index, sources in found.items() if len(sources)}

    def _fetch(self) -> dict[Hashable, Array]:
        """What the rows' explanations are made of and is still on the device, by name."""
        predicted = self._predicted
        tensors: dict[Hashable, Tensor] = {"tokens": predicted.tokens, "ranks": predicted.ranks, "scales": self._scale}
        tensors["log probabilities"] = predicted.log_probabilities
        if Part.LAYERS in self._parts:
            values = layer_values(self._objective, self._view.sizes.layers)
            tensors |= {"attention layers": values.attention, "ffn layers": values.ffn}
            tensors["ends"] = torch.stack([values.embedding, values.final, values.remainder], 1)
        if Part.ATTENTION_PATTERNS in self._parts:
            tensors["patterns"] = self._states.attention
        if self._details is not None:
            tensors |= {"position scores": self._details.scores, "position attention": self._details.attention}
        tensors |= self._queries.tensors
        fetched = dict(zip(tensors, to_host(list(tensors.values())), strict=True))
        if "patterns" in fetched:
            fetched["patterns"] = self._where_heads_are(fetched["patterns"])
        return fetched

    def _name_predictions(self) -> list[dict[str, Any]]:
        columns = (self._fetched[name] for name in ("tokens", "log probabilities", "ranks"))
        found = named_predictions(self._projector, *columns)
        return [
            {
                "target": target,
                "contrast": None if row.contrast is None else contrast,
                "spaced_target": spaced if spaced.rank < target.rank else None,
                "final_norm_scale": scale,
                "predictions": tuple(alternatives),
            }
            for row, scale, (target, contrast, spaced, *alternatives) in zip(
                self._rows, self._fetched["scales"].tolist(), found, strict=True
            )
        ]

    def _project_positions(self) -> dict[HeadOfRow, tuple[HeadPosition, ...]]:
        if self._details is None:
            return {}
        scores = self._fetched["position scores"]
        return self._details.positions(self._rows, scores, self._captured, self._projector, self._own_heads)

    def _layer_scores(self, index: int) -> LayerScores:
        attention, ffn, ends = (self._fetched[name][index] for name in ("attention layers", "ffn layers", "ends"))
        return LayerScores(attention, ffn, *ends.tolist())

    def _row_heads(self, index: int, sign: int) -> tuple[HeadScore, ...]:
        assert self._heads is not None
        strongest = highest_heads(self._heads[index], self._rows[index].options.head_top_k, sign)
        return tuple(self._head(HeadOfRow(index, head), score) for head, score in strongest)

    def _head(self, which: HeadOfRow, score: float) -> HeadScore:
        assert self._details is not None
        place, length = self._details.places[which], self._rows[which.row].position + 1
        scores = self._fetched["position scores"][place, :length]
        attention = self._fetched["position attention"][place, :length]
        return HeadScore(which.head, score, scores, attention, self._head_positions.get(which, ()))

    def _rankings(self, index: int) -> dict[str, NeuronRanking]:
        options = self._rows[index].options
        wanted = [
            wanted_ranking(index, kind, sign, options)
            for kind, part in PARTS.items()
            if part in options.parts
            for sign in SIGNS[options.direction]
        ]
        return {
            RANKING_FIELDS[want.kind, want.sign]: ranking(self._view, self._found[want], want, options.top_k)
            for want in wanted
        }


def _id(token: int | None) -> int:
    return -1 if token is None else token
