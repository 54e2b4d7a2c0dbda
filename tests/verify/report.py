"""docs/verification.md: what was compared, under which conditions, and what came out."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy
import torch
import transformers
from neuron_attribution_server.tasks.model_facts import ModelFacts

from verify.rankings import DIRECTIONS, FIELDS, TOLERANCE, Comparison
from verify.states import States

NAMES = {"ffn": "FFN", "attention": "attention"}
TEXT = """# Verification of the bounded top-k

Written by `make verify`. The engine's bounded rankings of value neurons (`exhaustive=False`) against brute force, which
scores every neuron against the whole vocabulary for every prompt. The brute force is separate code (`tests/verify`): it
computes each neuron's vocabulary projection once and evaluates it in all prompts and at all source positions. {states}

**{right} of {total} rankings are those of brute force**; largest score difference {difference:.1e}.

A ranking counts as identical when it has the same neurons in the same order, but for scores closer than
{tolerance:.0e} of the larger of 1 and the ranking's largest score; "to the last place" counts those that need no such
exception. A contrast is linear, so that its bound is its score and every neuron is scored by one dot product.
Differences come from float32: the two forward passes and the two sums over the vocabulary round differently.

| | |
|---|---|
{conditions}

{tables}"""
STATES = {
    True: "The\nprompts' states are recorded by hooks of its own.",
    False: "The\nprompts' states are those of the engine's pass, whose weights and activations are in half precision.",
}
HEADER = """## {name} neurons

{count} of them in each prompt.

| direction | k | prompts | identical | to the last place | largest difference | scored: median | most | most, of all |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
"""


@dataclass(frozen=True)
class Run:
    """Everything the report says; times in seconds."""

    facts: ModelFacts
    prompts: Sequence[States]
    comparisons: Sequence[Comparison]
    brute_force: float
    total: float
    threads: int
    command: str


def write(run: Run, path: Path) -> None:
    """Write the report."""
    text = TEXT.format(
        right=sum(not comparison.mistakes for comparison in run.comparisons),
        total=len(run.comparisons),
        difference=max(comparison.difference for comparison in run.comparisons),
        tolerance=TOLERANCE,
        states=STATES[run.facts.identity.dtype == "float32"],
        conditions="\n".join(f"| {name} | {value} |" for name, value in _conditions(run).items()),
        tables="\n".join(_table(run.comparisons, kind) for kind in FIELDS),
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def _conditions(run: Run) -> dict[str, str]:
    lengths = [len(prompt.tokens) for prompt in run.prompts]
    identity = run.facts.identity
    return {
        "code": _revision(),
        "model": f"{identity.name}, {identity.revision}, {identity.dtype}",
        "prompts": f"{len(lengths)}, {min(lengths)} to {max(lengths)} tokens",
        "explained": "the most probable next token; the second most probable one is the contrast",
        "processor": f"{_processor()}, {run.threads} threads, no GPU",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, numpy {numpy.__version__}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"`{run.command}`",
        "time": f"{run.total / 60:.1f} minutes, {run.brute_force / 60:.1f} of them brute force",
    }


def _table(comparisons: Sequence[Comparison], kind: str) -> str:
    mine = [comparison for comparison in comparisons if comparison.kind == kind]
    counts = sorted({comparison.neurons for comparison in mine})
    count = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    rows = [
        _row(direction, top_k, [c for c in mine if (c.direction, c.top_k) == (direction, top_k)])
        for direction in DIRECTIONS
        for top_k in sorted({comparison.top_k for comparison in mine})
    ]
    name = NAMES[kind]
    return HEADER.format(name=name[0].upper() + name[1:], count=count) + "\n".join(rows) + "\n"


def _row(direction: str, top_k: int, comparisons: Sequence[Comparison]) -> str:
    scored = [comparison.scored for comparison in comparisons]
    cells = (
        direction,
        f"{top_k:,}",
        f"{len(comparisons)}",
        f"{sum(not comparison.mistakes for comparison in comparisons)}",
        f"{sum(comparison.same_order for comparison in comparisons)}",
        f"{max(comparison.difference for comparison in comparisons):.1e}",
        f"{statistics.median_low(scored):,}",
        f"{max(scored):,}",
        f"{max(comparison.scored / comparison.neurons for comparison in comparisons):.2%}",
    )
    return f"| {' | '.join(cells)} |"


def _revision() -> str:
    """The commit that was verified, and whether the working tree differs from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, with local changes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not a git checkout"


def _processor() -> str:
    """The processor's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
