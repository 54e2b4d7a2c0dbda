"""Explains rows of captured states: the method's steps in the paper's order, for all rows of a group at once.

1. freeze the final norm's scale and read every base state as log probabilities
2. layers and heads: exact increases
3. value neurons: bound all, score the best, until nothing unscored can be among the top k
4. query layers and query FFN neurons of the strongest value neurons
5. project the returned neurons into the vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from neuron_attribution.neurons import Head
from neuron_attribution.requests import Part, ScoringMethod
from neuron_attribution.results import (
    Explanation,
    HeadScore,
    LayerScores,
    NeuronRanking,
)
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.capped_objectives import CappedObjective
from neuron_attribution_server.model.attribution.checkpoints import checkpoint
from neuron_attribution_server.model.attribution.methods import FROM_INCREASE
from neuron_attribution_server.model.attribution.objectives import LogProbability, LogProbabilityDifference, Objective
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.static_search import find_static
from neuron_attribution_server.model.attribution.value_scores import base_states, head_scores, layer_values
from neuron_attribution_server.model.attribution.value_search import (
    Found,
    Kind,
    LazyRanges,
    ValueSearch,
    Wanted,
)
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.activity import Activity
from neuron_attribution_server.model.engine.explanation.heads import HeadDetails, highest_heads
from neuron_attribution_server.model.engine.explanation.meanings import with_activity, with_projections
from neuron_attribution_server.model.engine.explanation.named_neurons import NamedNeurons
from neuron_attribution_server.model.engine.explanation.predictions import (
    most_probable,
    own_log_probabilities,
    predictions,
)
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.queries import Asked, QueryLayersOfRow, query_ffn_neurons
from neuron_attribution_server.model.engine.explanation.rows import Row, row_states
from neuron_attribution_server.model.engine.explanation.value_rankings import (
    PARTS,
    SIGNS,
    Source,
    merged,
    ranking,
    strongest_sources,
    wanted_ranking,
    wanted_rankings,
    wanted_sources,
)

_LOG_PROBABILITY_INCREASE = ScoringMethod.LOG_PROBABILITY_INCREASE
RANKING_FIELDS = {
    (Kind.FFN, 1): "ffn_value_neurons",
    (Kind.FFN, -1): "ffn_value_neurons_decreasing",
    (Kind.ATTENTION, 1): "attention_value_neurons",
    (Kind.ATTENTION, -1): "attention_value_neurons_decreasing",
}
QUERY_FIELDS = {1: "query_ffn_neurons", -1: "query_ffn_neurons_decreasing"}
HEAD_FIELDS = {1: "heads", -1: "heads_decreasing"}


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

    def explain(self, captured: CapturedStates, rows: Sequence[Row], seconds: SearchSeconds) -> list[Explanation]:
        """One explanation per row, in order; the searches' time is added to `seconds`."""
        group = _Group(self._view, self._weights, self._projector, self._ranges, captured, rows, seconds)
        explanations = with_activity(self._activity, [Explanation(**group.draft(index)) for index in range(len(rows))])
        return with_projections(self._projector, explanations, [row.options.projection_top_k for row in rows])


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
        self._states = row_states(captured, rows, view.sizes.heads)
        finals = self._states.inputs[:, -1]
        self._scale = self._scales(finals)
        self._targets = torch.tensor([row.target for row in rows], device=finals.device)
        self._predictions = self._predict(finals)
        self._bases = base_states(self._states)
        self._heads = self._head_scores()
        self._details = self._head_details()
        self._found, self._source = self._search()
        self._query_neurons = self._query_rankings()

    @cached_property
    def _objective(self) -> Objective:
        """What is explained, at every base: attention patterns alone do without."""
        return self._objective_at(self._bases)

    @cached_property
    def _named(self) -> NamedNeurons:
        return NamedNeurons(self._view, self._weights, self._states, self._scale, self._objective)

    def draft(self, index: int) -> dict[str, Any]:
        """One row's explanation as keyword arguments, without projections of neurons."""
        checkpoint()
        row = self._rows[index]
        parts = row.options.parts
        draft: dict[str, Any] = {"position": row.position} | self._predictions[index]
        if Part.LAYERS in parts:
            draft["layers"] = self._layer_scores(index)
        if Part.HEADS in parts and self._heads is not None:
            draft["head_scores"] = self._heads[index].cpu().numpy()
        if Part.ATTENTION_PATTERNS in parts:
            draft["attention_patterns"] = self._states.attention[index, ..., : row.position + 1].cpu().numpy()
        if Part.HEAD_POSITIONS in parts:
            draft |= {HEAD_FIELDS[sign]: self._row_heads(index, sign) for sign in SIGNS[row.options.direction]}
        draft |= self._rankings(index) | self._query_parts(index)
        neurons = row.options.neurons
        return draft | {"neurons": self._named.scores(index, neurons) if neurons else ()}

    def _scales(self, finals: Tensor) -> Tensor:
        """The final norm's scale of each row [E]: its own, or the one it is to be read with."""
        own = self._weights.unembedding.scale(finals)
        given = [row.scale or 0.0 for row in self._rows]
        if not any(given):
            return own
        scales = torch.tensor(given, device=own.device)
        return torch.where(scales > 0, scales, own)

    def _predict(self, finals: Tensor) -> list[dict[str, Any]]:
        log_probabilities = own_log_probabilities(self._weights.unembedding, finals)
        others = [[row.target if each is None else each for each in (row.contrast, row.spaced)] for row in self._rows]
        asked = torch.cat([self._targets[:, None], torch.tensor(others, device=finals.device)], 1)
        tokens = torch.cat([asked, most_probable(log_probabilities)], 1)
        found = predictions(self._projector, log_probabilities, tokens)
        return [
            {
                "target": target,
                "contrast": None if row.contrast is None else contrast,
                "spaced_target": spaced if spaced.rank < target.rank else None,
                "final_norm_scale": scale,
                "predictions": tuple(alternatives),
            }
            for row, scale, (target, contrast, spaced, *alternatives) in zip(
                self._rows, self._scale.tolist(), found, strict=True
            )
        ]

    def _objective_at(self, bases: Tensor) -> Objective:
        unembedding, constant = self._weights.unembedding, self._options.include_final_norm_bias
        contrasts = None
        if self._rows[0].contrast is not None:
            contrasts = torch.tensor([row.contrast for row in self._rows], device=bases.device)
        if unembedding.cap is not None:
            return CappedObjective(unembedding, bases, self._scale, self._targets, contrasts, include_constant=constant)
        if contrasts is None:
            return LogProbability(unembedding, bases, self._scale, self._targets, include_constant=constant)
        return LogProbabilityDifference(
            unembedding, bases, self._scale, self._targets, contrasts, include_constant=constant
        )

    def _layer_scores(self, index: int) -> LayerScores:
        values = layer_values(self._objective, self._view.sizes.layers)
        ends = torch.stack([values.embedding, values.final, values.remainder], 1)[index].tolist()
        return LayerScores(values.attention[index].cpu().numpy(), values.ffn[index].cpu().numpy(), *ends)

    def _head_scores(self) -> Tensor | None:
        """Head scores [E, L, H], where any row asks for them."""
        if not any({Part.HEADS, Part.HEAD_POSITIONS} & row.options.parts for row in self._rows):
            return None
        return head_scores(self._objective, self._weights, self._states, self._scale)

    def _head_details(self) -> HeadDetails | None:
        chosen = [self._chosen_heads(index) for index in range(len(self._rows))]
        if not any(chosen):
            return None
        return HeadDetails(self._weights, self._states, self._scale, self._objective, chosen)

    def _chosen_heads(self, index: int) -> list[Head]:
        options = self._rows[index].options
        if self._heads is None or Part.HEAD_POSITIONS not in options.parts:
            return []
        ends = [highest_heads(self._heads[index], options.head_top_k, sign) for sign in SIGNS[options.direction]]
        return list(dict.fromkeys(head for end in ends for head, _ in end))

    def _row_heads(self, index: int, sign: int) -> tuple[HeadScore, ...]:
        assert self._heads is not None
        options = self._rows[index].options
        return tuple(
            self._head(index, head, score)
            for head, score in highest_heads(self._heads[index], options.head_top_k, sign)
        )

    def _head(self, index: int, head: Head, score: float) -> HeadScore:
        assert self._details is not None
        row = self._rows[index]
        detail = self._details.head(index, head, score)
        k = row.options.position_projection_top_k
        if not k:
            return detail
        positions = self._details.positions(row, index, head, row.options.top_k, k, self._captured, self._projector)
        return replace(detail, positions=positions)

    def _search(self) -> tuple[dict[Wanted, Found], dict[Wanted, Found]]:
        """The rankings that are asked for, and the query parts' sources; one search where both use the same score."""
        asked, needed = wanted_rankings(self._rows), wanted_sources(self._rows)
        method = self._options.scoring_method
        if method is _LOG_PROBABILITY_INCREASE:
            found = self._value_search(self._objective, method).find(merged(asked, needed)) if asked or needed else {}
            return found, found
        own = self._value_search(self._objective, _LOG_PROBABILITY_INCREASE).find(needed) if needed else {}
        return self._by_method(method, asked) if asked else {}, own

    def _by_method(self, method: ScoringMethod, asked: dict[Wanted, int]) -> dict[Wanted, Found]:
        if method not in FROM_INCREASE:
            with self._seconds.scoring():
                return find_static(self._weights, self._states, self._targets, method, asked)
        objective = self._objective
        if method is ScoringMethod.LOG_PROBABILITY:
            objective = self._objective_at(torch.zeros_like(self._bases))
        return self._value_search(objective, method).find(asked)

    def _value_search(self, objective: Objective, method: ScoringMethod) -> ValueSearch:
        return ValueSearch(self._weights, self._states, self._scale, objective, method, self._ranges, self._seconds)

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

    def _sources(self, index: int, kind: Kind) -> list[Source]:
        """The value neurons of a row that its query parts start from: none where only others are named."""
        row = self._rows[index]
        if row.options.query_from:
            return self._named.sources(index, row.position, row.options.query_from, kind)
        found = self._source[Wanted(index, kind, 1, row.options.exhaustive)]
        return strongest_sources(self._view, found, kind, row.options.query_sources, row.position)

    def _query_rankings(self) -> dict[int, list[NeuronRanking]]:
        """The query FFN neurons of the rows that ask for them, by row."""
        asked = {
            index: Asked(row, sources)
            for index, row in enumerate(self._rows)
            if Part.QUERY_FFN_NEURONS in row.options.parts and (sources := self._sources(index, Kind.ATTENTION))
        }
        return dict(zip(asked, query_ffn_neurons(self._view, self._captured, list(asked.values())), strict=True))

    def _query_parts(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        options = row.options
        found: dict[str, Any] = {}
        if Part.QUERY_LAYERS in options.parts:
            layers = QueryLayersOfRow(self._view, self._captured, row)
            if sources := self._sources(index, Kind.FFN):
                found["ffn_query_layers"] = layers.ffn(sources, options.subkey)
            if sources := self._sources(index, Kind.ATTENTION):
                found["attention_query_layers"] = layers.attention(sources)
        if index in self._query_neurons:
            rankings = self._query_neurons[index]
            found |= {QUERY_FIELDS[sign]: each for sign, each in zip(SIGNS[options.direction], rankings, strict=True)}
        return found
