"""A run and a search for the capacity as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan

from benchmarks.markdown import table

from load.capacity import Bounds, Step, capacity
from load.mix import Kind
from load.summary import QUANTILES, Summary, quantile

ALL = "all"
EXPLANATION = (
    "Latency counts from the moment a call was due, of answered calls; where there are fewer than a hundred, p99 is "
    "the longest."
)


def conditions(found: Mapping[str, object]) -> str:
    """What the numbers depend on."""
    return str(table(["condition", "value"], list(found.items())))


def run(summary: Summary, kinds: Sequence[Kind]) -> str:
    """Latencies by kind of request, statuses, and whether the load was as intended."""
    header = [
        "request",
        "calls",
        "answered",
        "answered a second",
        *(f"p{100 * each:g}" for each in QUANTILES),
        "longest",
    ]
    names = [kind.name for kind in kinds]
    rows = [[name, *_latencies(summary.of(name))] for name in names] + [[f"**{ALL}**", *_latencies(summary)]]
    return "\n\n".join(
        [
            EXPLANATION,
            table(header, rows),
            table(["status", "calls"], summary.codes.most_common()),
            f"Offered {summary.offered_rate:.2f} calls a second, answered {summary.achieved_rate:.2f}. Calls were sent "
            f"{_seconds(quantile(summary.lateness, 0.99))} late at p99.",
        ]
    )


def search(steps: Sequence[Step], bounds: Bounds) -> str:
    """The steps of a search by their rate, and the highest that held."""
    header = ["offered a second", "answered a second", "calls", "p50", "p99", "failed", "sent late, p99", "holds"]
    rows = [_step(step, bounds) for step in sorted(steps, key=lambda step: step.rate)]
    found = capacity(steps, bounds)
    return "\n\n".join(
        [
            table(header, rows),
            f"Capacity: **{'under ' if found is None else ''}{found or min(step.rate for step in steps):.2f} calls a "
            f"second** with p99 within {_seconds(bounds.p99)} and at most {bounds.failed:.1%} failed.",
        ]
    )


def _latencies(summary: Summary) -> list[object]:
    latencies = summary.latencies
    quantiles = [_seconds(quantile(latencies, share)) for share in (*QUANTILES, 1)]
    return [len(summary.samples), len(latencies), f"{summary.achieved_rate:.2f}", *quantiles]


def _step(step: Step, bounds: Bounds) -> list[object]:
    summary = step.summary
    return [
        f"{step.rate:.2f}",
        f"{summary.achieved_rate:.2f}",
        len(summary.samples),
        *(_seconds(quantile(summary.latencies, share)) for share in (0.5, 0.99)),
        f"{summary.failed_share:.1%}",
        _seconds(quantile(summary.lateness, 0.99)),
        "yes" if bounds.hold(summary) else "no",
    ]


def _seconds(value: float) -> str:
    if isnan(value):
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"
