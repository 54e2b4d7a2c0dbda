"""A run and a search for the capacity as pictures; the file's name says the format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from load.capacity import Step
from load.mix import Kind
from load.summary import Summary, quantile

SIZE = (11, 4.5)


def run(summary: Summary, kinds: Sequence[Kind], path: Path) -> None:
    """Latency by the moment the call was due, and the part of the calls that took at most so long."""
    figure = Figure(SIZE, layout="constrained")
    by_time, by_share = figure.subplots(1, 2)
    for kind in kinds:
        _kind(summary.of(kind.name), kind.name, by_time, by_share)
    by_time.set(xlabel="call due after (s)", ylabel="latency (s)", yscale="log")
    by_share.set(xlabel="latency (s)", ylabel="part of the calls", xscale="log", ylim=(0, 1.02))
    by_share.axhline(0.99, color="grey", linewidth=0.5)
    figure.legend(*by_share.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path)


def search(steps: Sequence[Step], bound: float, path: Path) -> None:
    """Latency and answers a second by the rate that was offered."""
    ordered = sorted(steps, key=lambda step: step.rate)
    rates = [step.rate for step in ordered]
    figure = Figure(SIZE, layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for share in (0.5, 0.99):
        values = [quantile(step.summary.latencies, share) for step in ordered]
        latency.plot(rates, values, marker="o", label=f"p{100 * share:g}")
    latency.axhline(bound, color="grey", linewidth=0.5, label="bound of p99")
    latency.set(xlabel="offered (calls/s)", ylabel="latency (s)", yscale="log")
    throughput.plot(rates, [step.summary.achieved_rate for step in ordered], marker="o", label="answered")
    throughput.plot(rates, rates, color="grey", linewidth=0.5, label="offered")
    throughput.set(xlabel="offered (calls/s)", ylabel="answered (calls/s)")
    for axes in (latency, throughput):
        axes.legend(fontsize="small")
    figure.savefig(path)


def _kind(summary: Summary, name: str, by_time: Axes, by_share: Axes) -> None:
    answered = summary.answered
    if not answered:
        return
    by_time.plot([each.intended for each in answered], [each.latency for each in answered], ".", label=name)
    by_share.step(summary.latencies, np.arange(1, len(answered) + 1) / len(answered), where="post", label=name)
