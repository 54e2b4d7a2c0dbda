"""The k best of many neurons, exactly, without scoring them all.

    1. every neuron has an upper bound of its score;
    2. neurons are scored in descending order of bound;
    3. when the k-th best score is above every remaining bound, no unscored neuron can be among the k best.

Searches propose blocks instead of scoring them, so that the survivors of many searches share one matrix product. What
they decide by are a few numbers each, on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, Ids, is_host
from neuron_attribution_server.model.attribution.subvalues import join

SPARE = 8
"""How many more than k are scored at once: the bounds are tight enough that this mostly settles a search."""

VALUES_AT_ONCE, OTHER_VALUES_AT_ONCE = 1 << 20, 1 << 22
"""Values that are ordered at once, on a CPU and elsewhere: each takes the room of eight meanwhile."""

Candidates = Callable[[int], tuple[Ids, Array]]
"""The ids and bounds of the n neurons with the highest bounds, in descending order."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The best neurons' ids and scores, best first, and how many were scored to find them."""

    ids: Ids
    scores: Array
    scored: int


def first_listed(total: int, k: int) -> int:
    """How many candidates a search for the k best of `total` begins with."""
    return min(total, 2 * min(k, total) + 8 * SPARE)


class BoundedSearch:
    """Finds the k highest scores among `total` neurons; ties go to the lower id."""

    def __init__(self, candidates: Candidates, total: int, k: int, first: tuple[Ids, Array] | None = None) -> None:
        """`first` are the `first_listed` candidates, where they are known."""
        self._candidates = candidates
        self._total = total
        self._k = min(k, total)
        self._listed = first_listed(total, k)
        self._ids, self._bounds = first or candidates(self._listed)
        self._scored = np.empty(0, dtype=np.int64)
        self._scores: Array = np.empty(0, dtype=np.float32)
        self.settled = False
        """Whether the k best are known to be the k best."""

    def proposal(self) -> Ids:
        """The ids to score next; empty when the search is settled."""
        if not len(self._scored):
            return self._ids[: self._k + SPARE]
        proposed = self._unscored_rivals()
        self.settled = not len(proposed)
        return proposed

    def _unscored_rivals(self) -> Ids:
        threshold = self.result().scores[-1]
        while self._bounds[-1] >= threshold and self._listed < self._total:
            self._listed = min(self._total, 4 * self._listed)
            self._ids, self._bounds = self._candidates(self._listed)
        rivals = self._ids[self._bounds >= threshold]
        unscored: Ids = rivals[~np.isin(rivals, self._scored)]
        return unscored[: max(self._k, 4 * SPARE, len(self._scored))]

    def accept(self, ids: Ids, scores: Array) -> None:
        """Take the scores of proposed ids."""
        self._scored = np.concatenate([self._scored, ids])
        self._scores = np.concatenate([self._scores, scores])

    def result(self) -> Ranked:
        """The k best of what was scored."""
        order = np.lexsort((self._scored, -self._scores))[: self._k]
        return Ranked(self._scored[order], self._scores[order], len(self._scored))


def search_until_exact(
    searches: Sequence[BoundedSearch],
    score: Callable[[list[Ids]], list[Array]],
    more: int = sys.maxsize,
    first: Callable[[], list[Array]] | None = None,
) -> None:
    """Run searches to their end, scoring the proposals of all of them at once; `first` gives the scores of the first.

    What is left when `more` neurons have been scored after the first proposals is given up, and not settled: bounds do
    not tell apart neurons of which hardly any changes anything. Most searches end long before.
    """
    proposals = [search.proposal() for search in searches]
    while any(len(proposal) for proposal in proposals):
        found = score(proposals) if first is None else first()
        for search, ids, scores in zip(searches, proposals, found, strict=True):
            search.accept(ids, scores)
        first = None
        proposals = [search.proposal() for search in searches]
        more -= sum(map(len, proposals))
        if more < 0:
            return


def highest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The places and values of the k highest of float32 values [R, n], best first, ties to the lower place: [R, k]."""
    step = max(1, (VALUES_AT_ONCE if is_host(values.device) else OTHER_VALUES_AT_ONCE) // values.shape[-1])
    places = join([_highest(some, k) for some in values.split(step)], 0)
    return places, values.gather(-1, places)


def _highest(values: Tensor, k: int) -> Tensor:
    """One top-k over 64 bits, the upper half of which order as the values do and the lower half against the places."""
    width = values.shape[-1]
    bits = (values + 0.0).view(torch.int32)  # minus zero is zero
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys.bitwise_left_shift_(32).add_(torch.arange(width - 1, -1, -1, device=values.device))
    return keys.topk(min(k, width), -1).indices
