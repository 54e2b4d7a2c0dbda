"""The report of an evaluation: means over facts with bootstrap confidence intervals, as numbers and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neuron_attribution.evaluation.protocol import METHODS, QUERY, RANDOM, RANDOM_QUERY, RANDOM_VALUES, VALUES
from neuron_attribution.evaluation.rows import Measured, Row

RESAMPLES = 2000
CONFIDENCE = 95
MEASURES: dict[str, Callable[[Measured], float]] = {
    "mrr": lambda each: 1 / each.rank,
    "probability": lambda each: 100 * each.probability,
    "log_probability": lambda each: each.log_probability,
}
TABLES = {
    "Ten FFN neurons taken away": [*METHODS, RANDOM],
    "Value neurons taken away (200 attention, 100 FFN)": [VALUES, RANDOM_VALUES],
    "Query neurons taken away": [QUERY, RANDOM_QUERY],
}
Report = dict[str, Any]


def report_of(rows: Sequence[Row], settings: Mapping[str, Any]) -> Report:
    """Everything that is reported."""
    eligible = [row for row in rows if row.status == "eligible"]
    names = [name for table in TABLES.values() for name in table]
    return {
        "settings": dict(settings),
        "facts": {"all": len(rows), **Counter(row.status for row in rows)},
        "failures": dict(Counter(row.reason for row in rows if row.status == "failed")),
        "original": _means([row.original for row in eligible if row.original is not None]),
        "without": {name: _means([row.without[name] for row in eligible]) for name in names},
        "sums": {
            kind: {"facts": len(some), "attention": _mean(some, "attention_sum"), "ffn": _mean(some, "ffn_sum")}
            for kind, some in _by_type(eligible).items()
        },
        "layers": {name: _shares(row.layers[name] for row in eligible) for name in _kinds(eligible)},
    }


def markdown(report: Report) -> str:
    """The report as a page."""
    facts, settings = report["facts"], report["settings"]
    lines = [
        "# Evaluation",
        "",
        ", ".join(f"{name} {value}" for name, value in settings.items()),
        "",
        f"{facts['all']} facts: {facts.get('eligible', 0)} eligible, {facts.get('ineligible', 0)} ineligible, "
        f"{facts.get('failed', 0)} failed. Means with {CONFIDENCE} % bootstrap intervals over facts.",
    ]
    if report["failures"]:
        lines += ["", *(f"- {count} failed: {reason}" for reason, count in report["failures"].items())]
    if not facts.get("eligible"):
        return "\n".join([*lines, ""])
    for title, names in TABLES.items():
        lines += ["", f"## {title}", "", *_table(report, names)]
    lines += [
        "",
        "## What layers add to the log probability",
        "",
        "| type | facts | attention | FFN |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {kind} | {each['facts']} | {each['attention']:.2f} | {each['ffn']:.2f} |"
        for kind, each in report["sums"].items()
    ]
    lines += ["", "## Where the neurons are (% of them, by layer)", ""]
    lines += [f"- {name}: {_strongest(shares)}" for name, shares in report["layers"].items()]
    return "\n".join([*lines, ""])


def _table(report: Report, names: Iterable[str]) -> list[str]:
    rows = [("original", report["original"]), *((name, report["without"][name]) for name in names)]
    labels = {letter: f"{letter} {method.value}" for letter, method in METHODS.items()}
    head = ["| | MRR | probability (%) | log probability | MRR changes by |", "|---|--:|--:|--:|--:|"]
    return head + [
        f"| {labels.get(name, name)} | {_interval(means['mrr'], 3)} | {_interval(means['probability'], 1)} | "
        f"{_interval(means['log_probability'], 2)} | {_change(report, means)} |"
        for name, means in rows
    ]


def _interval(mean: Mapping[str, float], digits: int) -> str:
    return f"{mean['mean']:.{digits}f} ({mean['low']:.{digits}f} to {mean['high']:.{digits}f})"


def _change(report: Report, means: Mapping[str, Mapping[str, float]]) -> str:
    before: float = report["original"]["mrr"]["mean"]
    return f"{100 * (means['mrr']['mean'] / before - 1):+.1f} %"


def _means(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Means and intervals; every call resamples the same facts, so that differences are paired."""
    if not measured:
        return {}
    resampled = np.random.default_rng(0).integers(len(measured), size=(RESAMPLES, len(measured)))
    found = {}
    for name, measure in MEASURES.items():
        values = np.array([measure(each) for each in measured])
        means = values[resampled].mean(1)
        low, high = np.percentile(means, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
        found[name] = {"mean": float(values.mean()), "low": float(low), "high": float(high)}
    return found


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows]))


def _by_type(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {"all": list(rows)} if rows else {}
    for kind in sorted({row.type for row in rows}):
        found[kind] = [row for row in rows if row.type == kind]
    return found


def _kinds(rows: Sequence[Row]) -> list[str]:
    return list(rows[0].layers) if rows else []


def _shares(counts: Iterable[Mapping[int, int]]) -> dict[int, float]:
    """The part of all neurons that each layer holds, in percent."""
    total: Counter[int] = Counter()
    for each in counts:
        total.update(each)
    return {layer: 100 * count / total.total() for layer, count in sorted(total.items())}


def _strongest(shares: Mapping[int, float], count: int = 10) -> str:
    ordered = sorted(shares, key=lambda layer: -shares[layer])[:count]
    return ", ".join(f"layer {layer} {shares[layer]:.1f}" for layer in ordered)
