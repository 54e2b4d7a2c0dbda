"""The search alone, with bounds made up: the true top k whatever the bounds are, as long as they are bounds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_attribution_server.model.attribution.host import Array, Ids
from neuron_attribution_server.model.attribution.search.ranking import (
    SPARE,
    BoundedSearch,
    Ranked,
    first_listed,
    highest,
    search_until_exact,
)
from torch import Tensor

FIXED = settings(derandomize=True, database=None, max_examples=examples(150))


@dataclass(frozen=True)
class Problem:
    """Scores and bounds of n neurons, and how many of the best are wanted."""

    scores: Tensor
    bounds: Tensor
    k: int

    def search(self) -> BoundedSearch:
        def candidates(count: int) -> tuple[Ids, Array]:
            top = self.bounds.topk(min(count, len(self.bounds)))
            return top.indices.numpy(), top.values.numpy()

        total = len(self.scores)
        first = candidates(first_listed(total, self.k)) if self.k % 2 else None
        return BoundedSearch(candidates, total, self.k, first)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Few distinct scores make ties; slack of every size, none and infinite among it."""
    total = draw(st.integers(1, 400))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scores = torch.randn(total, generator=generator)
    if draw(st.booleans()):
        scores = (scores * 2).round()
    if draw(st.booleans()):
        scores[torch.rand(total, generator=generator) < 0.1] = -torch.inf
    slack = torch.rand(total, generator=generator) * draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    slack[torch.rand(total, generator=generator) < draw(st.sampled_from([0.0, 0.05, 1.0]))] = torch.inf
    bounds = torch.where(slack.isinf(), torch.inf, scores + slack)
    return Problem(scores, bounds, draw(st.sampled_from([1, 2, 10, 50, 400, 1000])))


@FIXED
@given(problems())
def test_finds_the_best(problem: Problem) -> None:
    (found,) = solve([problem])
    assert_best(problem, found)


@FIXED
@given(st.lists(problems(), min_size=2, max_size=5))
def test_searches_that_are_settled_together_are_each_right(several: list[Problem]) -> None:
    for problem, found in zip(several, solve(several), strict=True):
        assert_best(problem, found)


def test_tight_bounds_leave_most_unscored() -> None:
    scores = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    (found,) = solve([Problem(scores, scores + 1e-3, 10)])
    assert found.scored < 50


def test_useless_bounds_score_everything() -> None:
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    (found,) = solve([Problem(scores, torch.full_like(scores, torch.inf), 10)])
    assert found.scored == 1000


def test_a_search_that_is_given_up_says_so() -> None:
    """The one whose bounds are tight is settled beside it."""
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    problems = [Problem(scores, torch.full_like(scores, torch.inf), 10), Problem(scores, scores + 1e-3, 10)]
    searches = [problem.search() for problem in problems]
    search_until_exact(searches, lambda proposals: [scores.numpy()[ids] for ids in proposals], more=200)
    assert [search.settled for search in searches] == [False, True]
    assert searches[0].result().scored <= 10 + SPARE + 200
    assert_best(problems[1], searches[1].result())


def test_a_bound_below_the_best_score_hides_it() -> None:
    """The bounds decide: one wrong bound is a wrong answer, so the tests above can fail."""
    scores = torch.arange(1000.0)
    bounds = scores.clone()
    bounds[-1] = 0
    problem = Problem(scores, bounds, 1)
    (found,) = solve([problem])
    assert found.ids.tolist() == [998]
    with pytest.raises(AssertionError):
        assert_best(problem, found)


def solve(problems: list[Problem]) -> list[Ranked]:
    """Settle all problems together; no neuron is scored twice."""
    searches = [problem.search() for problem in problems]
    seen: list[set[int]] = [set() for _ in problems]

    def score(proposals: list[Ids]) -> list[Array]:
        for known, ids in zip(seen, proposals, strict=True):
            assert len(ids) == len(set(ids.tolist()) - known)
            known.update(ids.tolist())
        return [problem.scores.numpy()[ids] for problem, ids in zip(problems, proposals, strict=True)]

    search_until_exact(searches, score)
    found = [search.result() for search in searches]
    assert [each.scored for each in found] == [len(known) for known in seen]
    return found


def assert_best(problem: Problem, found: Ranked) -> None:
    """The best by score, ties by id."""
    order = problem.scores.argsort(descending=True, stable=True)[: problem.k]
    assert found.scores.tolist() == problem.scores[order].tolist()
    assert found.ids.tolist() == order.tolist()
    assert len(order) <= found.scored <= len(problem.scores)


@FIXED
@given(
    st.lists(st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 0.5, 0.5000001, 3.0]), min_size=1, max_size=60), st.data()
)
def test_the_highest_are_those_of_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    """Of several rows at once; the two zeros are one number."""
    k = data.draw(st.integers(1, 70))
    values = torch.tensor([scores, scores[::-1]])
    places, found = highest(values, k)
    for row, mine, best in zip(values, places, found, strict=True):
        whole = row.sort(descending=True, stable=True)
        assert mine.tolist() == whole.indices[:k].tolist()
        assert best.tolist() == whole.values[:k].tolist()
