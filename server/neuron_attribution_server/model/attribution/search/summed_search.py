"""The best value neurons of rows taken together, without scoring all: bounds add, and exact sums settle the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, Ids
from neuron_attribution_server.model.attribution.methods import FROM_INCREASE, A
from neuron_attribution_server.model.attribution.search.ranking import BoundedSearch, Ranked, search_until_exact
from neuron_attribution_server.model.attribution.search.summed_neurons import SummedNeurons, Together, stacked
from neuron_attribution_server.model.attribution.search.value_search import Kind, ValueSearch


@dataclass(frozen=True, slots=True, eq=False)
class WantedSum:
    """One end (sign 1 or -1) of one kind's ranking over rows taken together, and how many neurons of it."""

    together: Together
    kind: Kind
    sign: int
    k: int
    over_positions: bool


@dataclass(frozen=True, slots=True, eq=False)
class FoundSum:
    """A ranking by summed scores, and what its neurons have at each row, [R, k]."""

    ranked: Ranked
    neurons: SummedNeurons
    scores: Array
    coefficients: Array
    exact: bool


@dataclass(slots=True, eq=False)
class _Job:
    wanted: WantedSum
    neurons: SummedNeurons
    search: BoundedSearch
    ids: list[Ids] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    coefficients: list[Array] = field(default_factory=list)


class SummedSearch:
    """Finds value neurons by the log probability increases of several rows, with what a search of single rows knows."""

    def __init__(self, search: ValueSearch) -> None:
        self._search = search

    def find(self, wanted: Sequence[WantedSum]) -> list[FoundSum]:
        """The k best neurons of each wanted end, all searches settled together."""
        with self._search.seconds.bounding():
            jobs = [self._job(want) for want in wanted]
            most = max((len(job.wanted.together.weights) for job in jobs), default=1)
            searches = [job.search for job in jobs]
            search_until_exact(searches, lambda proposals: self._scored(jobs, proposals), self._search.more // most)
        return [self._found(job) for job in jobs]

    def _job(self, want: WantedSum) -> _Job:
        search = self._search
        neurons = SummedNeurons(search.neurons(want.kind, want.over_positions), want.together, search.device)
        first_order = search.first_order(want.kind)
        ranges = search.ranges(want.kind) if neurons.falls(want.sign) and search.objective.spread else None

        def bounds(_rows: slice, layers: slice) -> Tensor:
            return neurons.bounds(first_order, layers, want.sign, ranges)

        def candidates(count: int) -> tuple[Ids, Array]:
            ids, values = neurons.top([0], count, bounds)
            return ids[0], values[0]

        return _Job(want, neurons, BoundedSearch(candidates, neurons.total(0), want.k))

    def _scored(self, jobs: Sequence[_Job], proposals: Sequence[Ids]) -> list[Array]:
        """The exact sums of every search's proposals, from one product with the unembedding for all rows."""
        places = [job.neurons.places(ids) for job, ids in zip(jobs, proposals, strict=True)]
        found = iter(self._search.exact.of([each for every, _ in places for each in every], FROM_INCREASE[A]))
        sums = []
        for job, ids, (every, seen) in zip(jobs, proposals, places, strict=True):
            mine = [next(found) for _ in every]
            scores, coefficients = (
                stacked([getattr(each, name) for each in mine], seen, len(ids)) for name in ("scores", "coefficients")
            )
            job.ids.append(ids)
            job.scores.append(scores)
            job.coefficients.append(coefficients)
            sums.append(job.wanted.sign * job.neurons.sum(scores))
        return sums

    def _found(self, job: _Job) -> FoundSum:
        ranked, total, objective = job.search.result(), job.neurons.total(0), self._search.objective
        exact = job.search.settled and (not objective.curvature or ranked.scored == total)
        every = np.concatenate(job.ids)
        order = np.argsort(every)
        at = order[np.searchsorted(every, ranked.ids, sorter=order)]
        scores, coefficients = (np.concatenate(each, 1)[:, at] for each in (job.scores, job.coefficients))
        signed = Ranked(ranked.ids, job.wanted.sign * ranked.scores, total if objective.linear else ranked.scored)
        return FoundSum(signed, job.neurons, scores, coefficients, exact)


def by_end(wanted: Sequence[WantedSum], found: Sequence[FoundSum]) -> Mapping[tuple[Kind, int], FoundSum]:
    """What was found of one group of rows, by the kind and the end."""
    return {(want.kind, want.sign): each for want, each in zip(wanted, found, strict=True)}
