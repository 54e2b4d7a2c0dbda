"""How much a server can take: the rate is raised until latency or failures exceed their bounds, then halved in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from load.summary import Summary, quantile

FACTOR = 1.5
RESOLUTION = 1.1
"""The search ends when the rates that hold and that do not are within this factor."""
FEWEST_CALLS = 10
"""A step of fewer calls says nothing."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What callers accept: seconds that 99 % of the answers take at most, and the part of the calls that may fail."""

    p99: float
    failed: float

    def hold(self, summary: Summary) -> bool:
        """Whether a run kept to them."""
        return quantile(summary.latencies, 0.99) <= self.p99 and summary.failed_share <= self.failed


@dataclass(frozen=True, slots=True)
class Step:
    """A run at one rate, in calls a second."""

    rate: float
    summary: Summary


def search(run: Callable[[float], Summary], start: float, bounds: Bounds, seconds: float) -> list[Step]:
    """The runs of a search that starts at a rate; each takes `seconds`."""
    steps: list[Step] = []

    def holds(rate: float) -> bool:
        steps.append(Step(rate, run(rate)))
        return bounds.hold(steps[-1].summary)

    low = high = start
    if holds(start):
        while holds(high := high * FACTOR):
            low = high
    else:
        while low * seconds / FACTOR >= FEWEST_CALLS and not holds(low := low / FACTOR):
            high = low
    while capacity(steps, bounds) is not None and high / low > RESOLUTION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return steps


def capacity(steps: Sequence[Step], bounds: Bounds) -> float | None:
    """The highest rate that held, below every one that did not; None where none held."""
    broken = min((step.rate for step in steps if not bounds.hold(step.summary)), default=float("inf"))
    return max((step.rate for step in steps if step.rate < broken and bounds.hold(step.summary)), default=None)
