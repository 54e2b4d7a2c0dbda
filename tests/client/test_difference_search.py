"""The search for the largest differences alone: it finds the true ones, whatever the scores are."""

import random
from dataclasses import dataclass

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_attribution.comparing.difference_search import FELL, ROSE, ROUNDING, DifferenceSearch
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.results import Coverage, NeuronRanking, NeuronScore

FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=examples(150))
DIRECTIONS = {"fell": FELL, "rose": ROSE}


@dataclass(frozen=True)
class Problem:
    """Both sides' scores of n neurons, how many differences are wanted, and the depth the search starts with."""

    sides: tuple[list[float], list[float]]
    k: int
    depth: int

    @property
    def differences(self):
        return [first - second for first, second in zip(*self.sides, strict=True)]


@st.composite
def problems(draw):
    """Sides that resemble each other or do not, with ties among them."""
    generator = random.Random(draw(st.integers(0, 10_000)))
    total, change = draw(st.integers(1, 200)), draw(st.sampled_from([0.0, 1e-6, 0.05, 1.0, 50.0]))
    first = [generator.gauss(0, 1) ** 3 for _ in range(total)]
    second = [score + change * generator.gauss(0, 1) for score in first]
    if draw(st.booleans()):
        first, second = [round(score, 1) for score in first], [round(score, 1) for score in second]
    k = draw(st.sampled_from([1, 2, 5, 20, 300]))
    return Problem((first, second), k, max(k, draw(st.sampled_from([1, 4, 50]))))


@FIXED
@given(problems())
def test_finds_the_largest_differences(problem):
    search, depth = solve(problem)
    found = search.result()
    assert found.neurons == len(problem.differences)
    assert found.depth == min(depth, found.neurons)
    for name, sign in DIRECTIONS.items():
        ranking = getattr(found, name)
        assert ranking.exact
        assert ranking.gap == 0
        expected = sorted((sign * difference for difference in problem.differences), reverse=True)[: problem.k]
        assert [sign * item.difference for item in ranking.neurons] == expected
        assert len({item.neuron for item in ranking.neurons}) == len(expected)


@FIXED
@given(problems(), st.integers(1, 50))
def test_a_search_that_is_stopped_says_what_may_be_missing(problem, most):
    search, _ = solve(problem, max(problem.k, most))
    found = search.result()
    for name, sign in DIRECTIONS.items():
        ranking = getattr(found, name)
        assert ranking.exact == (ranking.gap == 0)
        listed = {item.neuron.index for item in ranking.neurons}
        least = sign * ranking.neurons[-1].difference
        for index, difference in enumerate(problem.differences):
            assert index in listed or sign * difference <= least + ranking.gap


def test_sides_that_share_nothing_need_few_scores():
    generator = random.Random(0)
    sides = tuple([generator.gauss(0, 1) ** 3 for _ in range(10_000)] for _ in range(2))
    search, depth = solve(Problem(sides, 5, 20))
    found = search.result()
    assert depth <= 160
    assert found.scored < 500
    assert found.fell.exact
    assert found.rose.exact


def test_sides_that_are_almost_the_same_need_depth():
    """A change smaller than most scores cannot be told from none before those scores are ranked."""
    generator = random.Random(0)
    first = [generator.gauss(0, 1) for _ in range(1000)]
    second = [score + 0.01 * generator.gauss(0, 1) for score in first]
    _, depth = solve(Problem((first, second), 3, 3))
    assert depth > 100


def test_a_difference_within_rounding_of_the_bound_is_not_claimed():
    search = DifferenceSearch(1)
    for side, score in enumerate((0.5, -0.5)):
        found = [NeuronScore(FfnNeuron(0, 0), score, None, 1.0)]
        search.take_rankings(side, ranking(found, 2), ranking(found, 2))
    assert search.result().fell.gap == pytest.approx(ROUNDING)
    assert not search.result().fell.exact


def test_rankings_that_are_not_guaranteed_make_none_that_is():
    search = DifferenceSearch(1)
    scores = [NeuronScore(FfnNeuron(0, index), float(index), None, 1.0) for index in range(2)]
    for side in (0, 1):
        search.take_rankings(side, ranking(scores[::-1], 2, exact=side == 0), ranking(scores, 2))
    assert search.settled
    assert search.result().fell.gap == 0
    assert not search.result().fell.exact


def test_passes_that_differ_widen_the_bound():
    search = DifferenceSearch(1)
    scores = [NeuronScore(FfnNeuron(0, index), float(index), None, 1.0) for index in range(2)]
    for side in (0, 1):
        search.take_rankings(side, ranking(scores[:1], 3), ranking(scores[:1], 3))
    before = search.result().fell.bound
    search.take_drift(1, 0.25)
    assert search.result().fell.bound == pytest.approx(before + 0.25)


def solve(problem, most=10**6):
    """The search at its end, driven as a client drives it; and the depth it ended at."""
    search, depth = DifferenceSearch(problem.k), problem.depth
    rank(search, problem, depth)
    while not search.settled and depth < most:
        depth = min(2 * depth, most)
        rank(search, problem, depth)
    return search, depth


def rank(search, problem, depth):
    for side, scores in enumerate(problem.sides):
        every = [NeuronScore(FfnNeuron(0, index), score, None, 1.0) for index, score in enumerate(scores)]
        order = sorted(every, key=lambda item: item.score)
        search.take_rankings(side, ranking(order[::-1][:depth], len(every)), ranking(order[:depth], len(every)))
    while missing := {side: search.missing(side) for side in (0, 1) if search.missing(side)}:
        for side, named in missing.items():
            search.take_scores(
                side,
                [NeuronScore(neuron, problem.sides[side][neuron.index], None, 1.0) for neuron in named[:7]],
            )


def ranking(scores, total, exact=True):
    return NeuronRanking(tuple(scores), Coverage(total, total, len(scores), exact))
