"""The best value neurons of many explained rows, found together: one bound product per layer, shared exact products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from neuron_attribution.requests import ScoringMethod
from torch import Tensor

from neuron_attribution_server.model.attribution.bounds import rounding_slack
from neuron_attribution_server.model.attribution.exhaustive import exhaustive_increases
from neuron_attribution_server.model.attribution.methods import FROM_INCREASE
from neuron_attribution_server.model.attribution.objectives import Objective
from neuron_attribution_server.model.attribution.ranking import BoundedSearch, Ranked, search_until_exact
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.states import RowStates, SubvalueNorms, Weights
from neuron_attribution_server.model.attribution.subvalues import Subvalues
from neuron_attribution_server.model.attribution.value_neurons import (
    AttentionValueNeurons,
    FirstOrder,
    ValueNeurons,
    WholeValueNeurons,
)
from neuron_attribution_server.model.attribution.value_scores import subvalue_products, unit_slack

MORE_PRODUCTS = 1 << 41
"""Multiplications that a batch's searches may take after their first proposals, about a minute on two CPU cores.

Interventions can make a model of which no neuron adds anything to the answer; its rankings end without a guarantee.
"""


class Kind(Enum):
    """A kind of value neuron."""

    FFN = "ffn"
    ATTENTION = "attention"


Ranges = Mapping[Kind, Tensor]
"""Per kind, the largest minus the smallest value of each neuron's unscaled projection, [L, n]."""

LazyRanges = Callable[[], Ranges]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One end (sign 1 or -1) of one kind's ranking at one row."""

    row: int
    kind: Kind
    sign: int
    exhaustive: bool
    over_positions: bool = False
    """Attention neurons only: over all source positions together, instead of one entry for each."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A ranking and the neurons its ids count."""

    ranked: Ranked
    neurons: ValueNeurons
    exact: bool = True
    """Whether the ranking is guaranteed to be that of scoring every neuron."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    search: BoundedSearch
    neurons: ValueNeurons
    wanted: Wanted


class ValueSearch:
    """Finds value neurons by a method that follows from the objective's increase (a, b or c)."""

    def __init__(
        self,
        weights: Weights,
        states: RowStates,
        scale: Tensor,
        objective: Objective,
        method: ScoringMethod,
        ranges: LazyRanges,
        seconds: SearchSeconds,
    ) -> None:
        self._seconds = seconds
        self._weights = weights
        self._states = states
        self._scale = scale
        self._objective = objective
        self._score = FROM_INCREASE[method]
        self._ranges = ranges
        self._layers = len(weights.ffn_subvalues)
        with seconds.bounding():
            self._bound_units(objective.slopes)

    def find(self, wanted: Mapping[Wanted, int]) -> dict[Wanted, Found]:
        """The k best neurons of each wanted end; scores are signed as they are, best first in the end's own order."""
        with self._seconds.bounding():
            jobs = [self._job(want, k) for want, k in wanted.items() if not want.exhaustive]
            more = MORE_PRODUCTS // self._weights.unembedding.weight.numel()
            search_until_exact([job.search for job in jobs], lambda proposals: self._exact(jobs, proposals), more)
        found = {job.wanted: self._found(job) for job in jobs}
        with self._seconds.scoring():
            return found | {want: self._every(want, k) for want, k in wanted.items() if want.exhaustive}

    def increases(self, row: int, kind: Kind, neurons: ValueNeurons) -> Tensor:
        """The objective's increase of every neuron of a row, in the order of ids, by brute force."""
        first_base = row * self._objective.values.shape[1]
        return exhaustive_increases(self._objective, self._weights.unembedding, neurons, self._scale[row], first_base)

    def _bound_units(self, slopes: Tensor) -> None:
        weights = self._weights
        self._slack = rounding_slack(weights.unembedding, slopes, self._scale)
        self._products = {
            kind: subvalue_products(slopes[:, self._bases(kind)], subvalues_of(weights, kind)) for kind in Kind
        }
        self._unit_slack = {kind: unit_slack(self._slack, norms_of(weights, kind), self._bases(kind)) for kind in Kind}

    def _bases(self, kind: Kind) -> slice:
        return slice(self._layers + 1, None) if kind is Kind.FFN else slice(0, self._layers)

    def _job(self, want: Wanted, k: int) -> _Job:
        neurons = value_neurons(self._weights, self._states, want)
        bounds = self._first_order(want)

        def candidates(count: int) -> tuple[Tensor, Tensor]:
            return neurons.highest(count, bounds, self._score, want.sign)

        return _Job(BoundedSearch(candidates, neurons.total, k), neurons, want)

    def _first_order(self, want: Wanted) -> FirstOrder:
        row, kind = want.row, want.kind
        ranges = None
        if want.sign < 0 and self._objective.spread:
            ranges = self._ranges()[kind] / self._scale[row]
        return FirstOrder(
            products=self._products[kind][row],
            slack=self._unit_slack[kind][row],
            constant=self._slack.constant,
            ranges=ranges,
            base_values=self._objective.values[row, self._bases(kind)][: self._layers],
            bends=self._bends(kind, row),
        )

    def _bends(self, kind: Kind, row: int) -> Tensor | None:
        """The curvature times the square of the largest logit that a unit coefficient can add, [L, n]."""
        if not self._objective.curvature:
            return None
        largest = norms_of(self._weights, kind).folded * (self._weights.unembedding.largest_norm / self._scale[row])
        return self._objective.curvature * largest.square()

    def _exact(self, jobs: Sequence[_Job], proposals: Sequence[Tensor]) -> list[Tensor]:
        """The exact scores of every search's proposals, from one product with the unembedding."""
        with self._seconds.scoring():
            return self._scores(jobs, proposals)

    def _scores(self, jobs: Sequence[_Job], proposals: Sequence[Tensor]) -> list[Tensor]:
        vectors = torch.cat([self._vectors(job, ids) for job, ids in zip(jobs, proposals, strict=True)])
        states = self._objective.values.shape[1]
        bases = torch.cat(
            [job.neurons.bases(ids) + job.wanted.row * states for job, ids in zip(jobs, proposals, strict=True)]
        )
        increases = self._objective.increases(vectors, bases)
        scores = self._score(increases, self._objective.values.flatten()[bases])
        parts = scores.split([len(ids) for ids in proposals])
        return [job.wanted.sign * part for job, part in zip(jobs, parts, strict=True)]

    def _vectors(self, job: _Job, ids: Tensor) -> Tensor:
        factors = job.neurons.coefficients_of(ids) / self._scale[job.wanted.row]
        return self._weights.unembedding.fold(job.neurons.subvalues(ids)) * factors[:, None]

    def _found(self, job: _Job) -> Found:
        ranked = self._finish(job)
        exact = job.search.settled and (not self._objective.curvature or ranked.scored == job.neurons.total)
        return Found(ranked, job.neurons, exact)

    def _finish(self, job: _Job) -> Ranked:
        ranked = job.search.result()
        scored = job.neurons.total if self._objective.linear else ranked.scored
        return Ranked(ranked.ids, job.wanted.sign * ranked.scores, scored)

    def _every(self, want: Wanted, k: int) -> Found:
        neurons = value_neurons(self._weights, self._states, want)
        increases = self.increases(want.row, want.kind, neurons)
        bases = self._objective.values[want.row, neurons.bases(torch.arange(len(increases), device=increases.device))]
        scores = self._score(increases, bases).view(neurons.layers, neurons.units, -1)
        return Found(neurons.rank(scores.__getitem__, k, want.sign), neurons)


def value_neurons(weights: Weights, states: RowStates, want: Wanted) -> ValueNeurons:
    """The neurons of the wanted kind at its row."""
    subvalues = subvalues_of(weights, want.kind)
    if want.kind is Kind.FFN:
        return WholeValueNeurons(subvalues, states.coefficients[want.row], first_base=len(subvalues) + 1)
    if want.over_positions:
        return WholeValueNeurons(subvalues, states.head_outputs[want.row].flatten(1), first_base=0)
    return AttentionValueNeurons(subvalues, states, want.row)


def subvalues_of(weights: Weights, kind: Kind) -> Sequence[Subvalues]:
    """The subvalues of each layer's neurons of one kind."""
    return weights.ffn_subvalues if kind is Kind.FFN else weights.attention_subvalues


def norms_of(weights: Weights, kind: Kind) -> SubvalueNorms:
    """The norms of one kind's subvalues."""
    return weights.ffn_norms if kind is Kind.FFN else weights.attention_norms
