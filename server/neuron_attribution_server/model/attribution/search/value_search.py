"""The best value neurons of many explained rows, found together: one bound product per layer, shared exact products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from neuron_attribution.requests import ScoringMethod
from torch import Tensor

from neuron_attribution_server.model.attribution.bounds import rounding_slack
from neuron_attribution_server.model.attribution.host import Array, Ids, is_host
from neuron_attribution_server.model.attribution.methods import FROM_INCREASE
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.search.exact_scores import ExactScores, Places
from neuron_attribution_server.model.attribution.search.exhaustive import exhaustive_increases
from neuron_attribution_server.model.attribution.search.first_order import FirstOrder
from neuron_attribution_server.model.attribution.search.ranking import (
    BoundedSearch,
    Ranked,
    first_listed,
    search_until_exact,
)
from neuron_attribution_server.model.attribution.search.value_neurons import (
    AttentionValueNeurons,
    ValueNeurons,
    WholeValueNeurons,
)
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.states import RowStates, SubvalueNorms, Weights
from neuron_attribution_server.model.attribution.subvalues import Subvalues
from neuron_attribution_server.model.attribution.value_scores import subvalue_products, unit_slack

MORE_PRODUCTS, OTHER_MORE_PRODUCTS = 1 << 41, 1 << 46
"""Multiplications that a batch's searches may take after their first proposals: on two CPU cores about a minute.

Elsewhere as many as a GPU does in seconds.

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
    """A ranking, the neurons its ids count, and what multiplies the subvalues of its own."""

    ranked: Ranked
    neurons: ValueNeurons
    coefficients: Array
    exact: bool = True
    """Whether the ranking is guaranteed to be that of scoring every neuron."""


class Grids:
    """The value neurons of each kind at the rows of a group, made when they are first asked for."""

    def __init__(self, weights: Weights, states: RowStates) -> None:
        self._weights = weights
        self._states = states
        self._made: dict[tuple[Kind, bool], ValueNeurons] = {}

    def of(self, kind: Kind, *, over_positions: bool = False) -> ValueNeurons:
        """The neurons of a kind; those of attention over all source positions together, or one for each."""
        whole = kind is Kind.FFN or over_positions
        if (kind, whole) not in self._made:
            self._made[kind, whole] = self._make(kind, whole=whole)
        return self._made[kind, whole]

    def _make(self, kind: Kind, *, whole: bool) -> ValueNeurons:
        subvalues, states = subvalues_of(self._weights, kind), self._states
        if kind is Kind.FFN:
            return WholeValueNeurons(subvalues, states.coefficients, first_base=len(subvalues) + 1)
        if whole:
            return WholeValueNeurons(subvalues, states.head_outputs.flatten(2), first_base=0)
        return AttentionValueNeurons(subvalues, states)


@dataclass(slots=True, eq=False)
class _Job:
    wanted: Wanted
    neurons: ValueNeurons
    search: BoundedSearch
    ids: list[Ids] = field(default_factory=list)
    coefficients: list[Array] = field(default_factory=list)

    def places(self, ids: Ids) -> Places:
        layers, units, positions = self.neurons.locate(ids)
        return Places(self.neurons, np.full_like(ids, self.wanted.row), layers, units, positions)

    def coefficients_of(self, ids: Ids) -> Array:
        """What multiplies the subvalues of neurons that have been scored."""
        every, values = np.concatenate(self.ids), np.concatenate(self.coefficients)
        order = np.argsort(every)
        found: Array = values[order[np.searchsorted(every, ids, sorter=order)]]
        return found


class ValueSearch:
    """Finds value neurons by a method that follows from the objective's increase (a, b or c)."""

    def __init__(
        self,
        weights: Weights,
        grids: Grids,
        scale: Tensor,
        increases: PooledIncreases,
        method: ScoringMethod,
        ranges: LazyRanges,
        seconds: SearchSeconds,
    ) -> None:
        self._weights = weights
        self._grids = grids
        self._scale = scale
        self.objective = increases.objective
        self._score = FROM_INCREASE[method]
        self._ranges = ranges
        self.seconds = seconds
        self._layers = len(weights.ffn_subvalues)
        self.exact = ExactScores(weights, scale, increases)
        self._first_order: dict[Kind, FirstOrder] = {}

    def begin(self, wanted: Mapping[Wanted, int]) -> Callable[[], dict[Wanted, Found]]:
        """What finds the k best neurons of each wanted end; the first candidates wait to be scored with what else is.

        Scores are signed as they are, best first in the end's own order.
        """
        with self.seconds.bounding():
            jobs = self._jobs({want: k for want, k in wanted.items() if not want.exhaustive})
            first = self._ask(jobs, [job.search.proposal() for job in jobs])
        return lambda: self._finish(wanted, jobs, first)

    @property
    def device(self) -> torch.device:
        """Where the rows' states are."""
        return self._scale.device

    @property
    def more(self) -> int:
        """How many neurons searches may score after their first proposals."""
        most = MORE_PRODUCTS if is_host(self.device) else OTHER_MORE_PRODUCTS
        return most // self._weights.unembedding.weight.numel()

    def neurons(self, kind: Kind, over_positions: bool) -> ValueNeurons:
        """The neurons of a kind at every row."""
        return self._grids.of(kind, over_positions=over_positions)

    def ranges(self, kind: Kind) -> Tensor:
        """How far the projections of a kind's neurons spread, [L, n]."""
        return self._ranges()[kind]

    def _finish(
        self, wanted: Mapping[Wanted, int], jobs: Sequence[_Job], first: Callable[[], list[Array]]
    ) -> dict[Wanted, Found]:
        with self.seconds.bounding():
            searches = [job.search for job in jobs]
            search_until_exact(searches, lambda proposals: self._ask(jobs, proposals)(), self.more, first)
        found = {job.wanted: self._found(job) for job in jobs}
        with self.seconds.scoring():
            return found | {want: self._every(want, k) for want, k in wanted.items() if want.exhaustive}

    def first_order(self, kind: Kind) -> FirstOrder:
        """What bounds the neurons of a kind at every row."""
        if kind not in self._first_order:
            self._first_order[kind] = self._bound_units(kind)
        return self._first_order[kind]

    def _base_values(self, kind: Kind) -> Tensor:
        """The objective at each layer's base, [E, L]."""
        return self.objective.values[:, self._bases(kind)][:, : self._layers]

    def _bound_units(self, kind: Kind) -> FirstOrder:
        """What one product per layer tells of all rows' neurons of a kind."""
        slopes, bases = self.objective.slopes, self._bases(kind)
        slack = rounding_slack(self._weights.unembedding, slopes, self._scale)
        norms = norms_of(self._weights, kind)
        bends = None
        if self.objective.curvature:
            largest = norms.folded * self._weights.unembedding.largest_norm
            bends = self.objective.curvature * largest.square()
        return FirstOrder(
            products=subvalue_products(slopes[:, bases], subvalues_of(self._weights, kind)),
            slack=unit_slack(slack, norms, bases),
            constant=slack.constant,
            scale=self._scale,
            base_values=self._base_values(kind),
            bends=bends,
        )

    def _bases(self, kind: Kind) -> slice:
        return slice(self._layers + 1, None) if kind is Kind.FFN else slice(0, self._layers)

    def _jobs(self, wanted: Mapping[Wanted, int]) -> list[_Job]:
        """A search for each ranking, those of one end of one kind bounded together."""
        together: dict[tuple[Kind, int, bool], list[Wanted]] = defaultdict(list)
        for want in wanted:
            together[want.kind, want.sign, want.over_positions].append(want)
        in_turn = (sorted(wants, key=lambda want: want.row) for wants in together.values())
        return [job for wants in in_turn for job in self._jobs_of_one(wants, wanted)]

    def _jobs_of_one(self, wants: Sequence[Wanted], counts: Mapping[Wanted, int]) -> list[_Job]:
        kind, sign = wants[0].kind, wants[0].sign
        neurons = self._grids.of(kind, over_positions=wants[0].over_positions)
        ranges = self.ranges(kind) if sign < 0 and self.objective.spread else None

        def bounds(rows: slice, layers: slice) -> Tensor:
            return self.first_order(kind).scores(neurons, rows, layers, self._score, sign, ranges)

        def candidates(rows: Sequence[int], count: int) -> tuple[Ids, Array]:
            return neurons.top(rows, count, bounds)

        listed = [first_listed(neurons.total(want.row), counts[want]) for want in wants]
        lists = candidates([want.row for want in wants], max(listed))
        jobs = []
        for want, count, ids, values in zip(wants, listed, *lists, strict=True):

            def own(count: int, row: int = want.row) -> tuple[Ids, Array]:
                ids, values = candidates([row], count)
                return ids[0], values[0]

            first = ids[:count], values[:count]
            search = BoundedSearch(own, neurons.total(want.row), counts[want], first)
            jobs.append(_Job(want, neurons, search))
        return jobs

    def _ask(self, jobs: Sequence[_Job], proposals: Sequence[Ids]) -> Callable[[], list[Array]]:
        """What gives the exact scores of every search's proposals, from one product with the unembedding."""
        places = [job.places(ids) for job, ids in zip(jobs, proposals, strict=True)]
        scored = self.exact.ask(places, self._score)

        def result() -> list[Array]:
            found = scored()
            for job, ids, each in zip(jobs, proposals, found, strict=True):
                job.ids.append(ids)
                job.coefficients.append(each.coefficients)
            return [job.wanted.sign * each.scores for job, each in zip(jobs, found, strict=True)]

        return result

    def _found(self, job: _Job) -> Found:
        ranked, total = job.search.result(), job.neurons.total(job.wanted.row)
        exact = job.search.settled and (not self.objective.curvature or ranked.scored == total)
        scored = total if self.objective.linear else ranked.scored
        signed = Ranked(ranked.ids, job.wanted.sign * ranked.scores, scored)
        return Found(signed, job.neurons, job.coefficients_of(ranked.ids), exact)

    def _every(self, want: Wanted, k: int) -> Found:
        """By brute force."""
        neurons, row = self._grids.of(want.kind, over_positions=want.over_positions), want.row
        increases = exhaustive_increases(self.objective, self._weights.unembedding, neurons, row, self._scale[row])
        scores = self._score(increases, self._base_values(want.kind)[row, :, None, None])
        ranked = neurons.rank(row, scores.__getitem__, k, want.sign)
        return Found(ranked, neurons, neurons.coefficients_of(row, ranked.ids))


def subvalues_of(weights: Weights, kind: Kind) -> Sequence[Subvalues]:
    """The subvalues of each layer's neurons of one kind."""
    return weights.ffn_subvalues if kind is Kind.FFN else weights.attention_subvalues


def norms_of(weights: Weights, kind: Kind) -> SubvalueNorms:
    """The norms of one kind's subvalues."""
    return weights.ffn_norms if kind is Kind.FFN else weights.attention_norms
