"""The neurons of one kind whose scores differ most between two sides, exactly, without scoring every neuron.

    1. each side ranks its highest and its lowest neurons; every other neuron's score lies between the two ends
    2. what one side ranked, and may be among the k largest differences, is scored by name on the other side
    3. a neuron that neither side ranked differs by at most the one side's upper end minus the other's lower end; while
       the k-th largest difference does not exceed that by more than rounding, the sides rank more of their neurons

This is the threshold algorithm (Fagin, Lotem & Naor 2003) over two sorted lists with random access, in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from neuron_attribution.comparisons import DifferenceRanking, NeuronComparison, NeuronDifference
from neuron_attribution.neurons import Neuron
from neuron_attribution.results import NeuronRanking, NeuronScore

ROUNDING = 2e-5
"""How far float32 may take a difference when its two scores are computed again, beside other neurons'."""

FELL, ROSE = 1, -1


@dataclass
class SideScores:
    """What is known of one side's neurons: some scores, and the ends of the interval that all other scores lie in."""

    known: dict[Neuron, NeuronScore] = field(default_factory=dict)
    upper: float = math.inf
    lower: float = -math.inf

    def highest(self, neuron: Neuron) -> float:
        """At most this is the neuron's score."""
        return self.known[neuron].score if neuron in self.known else self.upper

    def lowest(self, neuron: Neuron) -> float:
        """At least this is the neuron's score."""
        return self.known[neuron].score if neuron in self.known else self.lower


class DifferenceSearch:
    """Finds the k largest differences in both directions from what the two sides are asked for."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._sides = (SideScores(), SideScores())
        self._neurons = 0
        self._depth = 0
        self._exact = True
        self._drifts = [0.0, 0.0]

    def take_rankings(self, side: int, highest: NeuronRanking, lowest: NeuronRanking) -> None:
        """Both ends of one side's ranking."""
        scores = self._sides[side]
        self._neurons, self._depth = highest.coverage.neurons, len(highest.neurons)
        self._exact &= highest.coverage.exact and lowest.coverage.exact
        scores.upper, scores.lower = highest.neurons[-1].score, lowest.neurons[-1].score
        self.take_scores(side, (*highest.neurons, *lowest.neurons))

    def take_scores(self, side: int, scores: Iterable[NeuronScore]) -> None:
        """Scores of some of one side's neurons; the first score of a neuron stands."""
        known = self._sides[side].known
        for score in scores:
            known.setdefault(score.neuron, score)

    def take_drift(self, side: int, drift: float) -> None:
        """How far two passes of one side were seen to be apart."""
        self._drifts[side] = max(self._drifts[side], drift)

    def missing(self, side: int) -> list[Neuron]:
        """What must be scored on this side, the largest possible difference first."""
        mine, other = self._sides[side].known, self._sides[1 - side].known
        least = {sign: self._least(sign) for sign in (FELL, ROSE)}
        possible = {
            neuron: max(self._possible(neuron, sign) - least[sign] for sign in (FELL, ROSE))
            for neuron in other.keys() - mine.keys()
        }
        rivals = [neuron for neuron, excess in possible.items() if excess + self._rounding > 0]
        return sorted(rivals, key=lambda neuron: (-possible[neuron], neuron))

    @property
    def settled(self) -> bool:
        """Whether no neuron that was not scored on both sides can be among the largest differences."""
        return all(self._bound(sign) <= self._least(sign) for sign in (FELL, ROSE))

    def result(self) -> NeuronComparison:
        """The largest differences of what was scored on both sides."""
        scored = len(self._compared())
        return NeuronComparison(self._neurons, scored, self._depth, self._ranking(FELL), self._ranking(ROSE))

    @property
    def _rounding(self) -> float:
        return ROUNDING + sum(self._drifts)

    def _compared(self) -> list[NeuronDifference]:
        first, second = (side.known for side in self._sides)
        return [NeuronDifference(neuron, score, second[neuron]) for neuron, score in first.items() if neuron in second]

    def _strongest(self, sign: int) -> list[NeuronDifference]:
        """In order; ties go by neuron, FFN or attention neurons among themselves."""
        order = sorted(self._compared(), key=lambda item: (-sign * item.difference, item.neuron))
        return order[: self._k]

    def _least(self, sign: int) -> float:
        """What a difference must reach to be among the k largest."""
        strongest = self._strongest(sign)
        return sign * strongest[-1].difference if len(strongest) >= self._k else -math.inf

    def _possible(self, neuron: Neuron, sign: int) -> float:
        """At most this is the neuron's difference in one direction."""
        minuend, subtrahend = self._sides[::sign]
        return minuend.highest(neuron) - subtrahend.lowest(neuron)

    def _unranked(self, sign: int) -> float:
        """At most this is the difference of any neuron that neither side ranked."""
        first, second = self._sides
        if len(first.known.keys() | second.known.keys()) >= self._neurons:
            return -math.inf
        minuend, subtrahend = self._sides[::sign]
        return minuend.upper - subtrahend.lower

    def _ranking(self, sign: int) -> DifferenceRanking:
        bound, least = self._bound(sign), self._least(sign)
        gap = max(0.0, bound - least)
        return DifferenceRanking(tuple(self._strongest(sign)), bound, gap, self._exact and gap == 0)

    def _bound(self, sign: int) -> float:
        """At most this is the difference of any neuron that was not scored on both sides."""
        first, second = (side.known.keys() for side in self._sides)
        possible = [self._possible(neuron, sign) for neuron in first ^ second]
        return max([self._unranked(sign), *possible]) + self._rounding
