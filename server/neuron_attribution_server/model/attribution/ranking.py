"""The k best of many neurons, exactly, without scoring them all.

    1. every neuron has an upper bound of its score;
    2. neurons are scored in descending order of bound;
    3. when the k-th best score is above every remaining bound, no unscored neuron can be among the k best.

Searches propose blocks instead of scoring them, so that the survivors of many searches share one matrix product.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPARE = 8
"""How many more than k are scored at once: the bounds are tight enough that this mostly settles a search."""

Candidates = Callable[[int], tuple[Tensor, Tensor]]
"""The ids and bounds of the n neurons with the highest bounds, in descending order."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The best neurons' ids and scores, best first, and how many were scored to find them."""

    ids: Tensor
    scores: Tensor
    scored: int


class BoundedSearch:
    """Finds the k highest scores among `total` neurons; ties go to the lower id."""

    def __init__(self, candidates: Candidates, total: int, k: int) -> None:
        self._candidates = candidates
        self._total = total
        self._k = min(k, total)
        self._listed = min(total, 2 * self._k + 8 * SPARE)
        self._ids, self._bounds = candidates(self._listed)
        self._scored = torch.empty(0, dtype=torch.long, device=self._ids.device)
        self._scores = torch.empty(0, device=self._ids.device)
        self.settled = False
        """Whether the k best are known to be the k best."""

    def proposal(self) -> Tensor:
        """The ids to score next; empty when the search is settled."""
        if not len(self._scored):
            return self._ids[: self._k + SPARE]
        proposed = self._unscored_rivals()
        self.settled = not len(proposed)
        return proposed

    def _unscored_rivals(self) -> Tensor:
        threshold = self.result().scores[-1]
        while self._bounds[-1] >= threshold and self._listed < self._total:
            self._listed = min(self._total, 4 * self._listed)
            self._ids, self._bounds = self._candidates(self._listed)
        rivals = self._ids[self._bounds >= threshold]
        unscored = rivals[~torch.isin(rivals, self._scored)]
        return unscored[: max(self._k, 4 * SPARE, len(self._scored))]

    def accept(self, ids: Tensor, scores: Tensor) -> None:
        """Take the scores of proposed ids."""
        self._scored = torch.cat([self._scored, ids])
        self._scores = torch.cat([self._scores, scores])

    def result(self) -> Ranked:
        """The k best of what was scored."""
        ids, scores = best(self._scored, self._scores, self._k)
        return Ranked(ids, scores, len(self._scored))


def search_until_exact(
    searches: Sequence[BoundedSearch], score: Callable[[list[Tensor]], list[Tensor]], more: int = sys.maxsize
) -> None:
    """Run searches to their end, scoring the proposals of all of them at once.

    What is left when `more` neurons have been scored after the first proposals is given up, and not settled: bounds do
    not tell apart neurons of which hardly any changes anything. Most searches end long before.
    """
    proposals = [search.proposal() for search in searches]
    while any(len(proposal) for proposal in proposals):
        for search, ids, scores in zip(searches, proposals, score(proposals), strict=True):
            search.accept(ids, scores)
        proposals = [search.proposal() for search in searches]
        more -= sum(map(len, proposals))
        if more < 0:
            return


def best(ids: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores and their ids, ties in order of id."""
    by_id = ids.argsort()
    order = by_id[scores[by_id].argsort(descending=True, stable=True)][:k]
    return ids[order], scores[order]


def all_scored(scores: Tensor, k: int) -> Ranked:
    """The ranking of scores [n] that are all known."""
    k = min(k, len(scores))
    if not k:
        return Ranked(scores.new_empty(0, dtype=torch.long), scores[:0], len(scores))
    least = scores.topk(k).values[-1]
    above, equal = (scores > least).nonzero().squeeze(1), (scores == least).nonzero().squeeze(1)
    chosen = torch.cat([above, equal[: k - len(above)]])
    ids, best_scores = best(chosen, scores[chosen], k)
    return Ranked(ids, best_scores, len(scores))
