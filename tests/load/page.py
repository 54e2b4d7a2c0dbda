"""Writes docs/capacity.md's tables: the measured ones of a study, and those that follow from sizes."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from benchmarks.markdown import table
from neuron_attribution.results import ModelSizes

from load import cost, report
from load.cost import Speed
from load.growth import CALLERS, Point
from load.study import THREADS, Plan, Study

MEASURED, MODELLED = "measured", "modelled"
MEBIBYTE = 2**20
LLAMA_7B = ModelSizes(
    layers=32, heads=32, key_value_heads=32, head_size=128, ffn_width=11008, hidden_size=4096, vocabulary=32000
)
LLAMA_3_8B = ModelSizes(
    layers=32, heads=32, key_value_heads=8, head_size=128, ffn_width=14336, hidden_size=4096, vocabulary=128256
)
MODELS = {"Llama-7B": LLAMA_7B, "Llama-3-8B": LLAMA_3_8B}
REACHED = 0.5
"""The part of a data sheet's speed that is taken to be reached; on CPUs scoring reached 36 and 51 % of its floor."""
TERMS = 3
"""The products in bfloat16 that one of float32 vectors with such a matrix takes."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet: operations a second in bfloat16 (dense, with tensor cores), bytes."""

    half: float
    memory: float

    @property
    def speed(self) -> Speed:
        """What is taken to be reached of it."""
        return Speed(REACHED * self.half, REACHED * self.half / TERMS)


DEVICES = {
    "L4": Device(121e12, 24e9),
    "A100 80 GB": Device(312e12, 80e9),
    "H100 SXM": Device(989e12, 80e9),
}
REQUESTS = ((16, 10), (16, 300), (128, 10), (1024, 10))
"""Tokens and k."""
LENGTHS = (16, 128, 1024)
QUIET = 0.5
"""The load of a machine up to which nothing else is taken to run."""
BUSY = (
    "**The machine had other work at the same time: rates are too low and ratios rough. Measure again on a quiet one.**"
)


def write(path: Path, part: str, text: str) -> None:
    """Replace a part of the page, which stands between two comments of its name."""
    page, count = re.subn(
        f"(<!-- {part} -->\n).*?(\n<!-- /{part} -->)",
        lambda found: f"{found[1]}{text}{found[2]}",
        path.read_text(),
        flags=re.S,
    )
    if count != 1:
        raise ValueError(f"{path} has {count} parts between <!-- {part} --> and <!-- /{part} -->, not one")
    path.write_text(page)


def measured(study: Study, plan: Plan) -> str:
    """The tables of a study."""
    speed = fitted(study)
    return "\n\n".join(
        [
            report.conditions(_conditions(study, plan)),
            *([BUSY] if study.load > QUIET else []),
            "Modelled is what follows from sizes as in the next part, with two speeds fitted to these points: "
            f"{speed.forward / 1e9:.0f} GFLOP/s in the forward pass, {speed.rows / 1e9:.0f} in products with the "
            "vocabulary (of the short prompts). Times are of one request, its share of the batch.",
            "### Tokens",
            _growth(study.lengths, speed, memory=True),
            "### k",
            _growth(study.counts, speed),
            "### Model size",
            _growth(study.shapes, speed, sizes=True),
            "### Replicas",
            f"Servers of one thread each on {os.cpu_count()} cores, the client taking turns between their addresses.",
            table(
                ["", "requests a second", "x one server"], [_replicas(each, study.replicas) for each in study.replicas]
            ),
            "### A mix at a bounded latency",
            "The default mix of `make load`, callers at random; the highest rate that kept to the bounds. "
            f"{report.EXPLANATION}",
            report.search(study.steps, plan.bounds),
        ]
    )


def modelled() -> str:
    """The tables that follow from sizes."""
    pairs = [(model, device) for model in MODELS for device in DEVICES]
    return "\n\n".join(
        [
            table(
                ["model, bfloat16", "device", "weights", *(f"largest batch of {tokens} tokens" for tokens in LENGTHS)],
                [[*pair, *_memory(MODELS[pair[0]], DEVICES[pair[1]])] for pair in pairs],
            ),
            table(
                ["model, bfloat16", "device", *(f"{tokens} tokens, k = {k}" for tokens, k in REQUESTS)],
                [[*pair, *(_rate(MODELS[pair[0]], DEVICES[pair[1]], *each) for each in REQUESTS)] for pair in pairs],
            ),
        ]
    )


def fitted(study: Study) -> Speed:
    """The speeds that the demo model's points reached, the median of them; rows are known of short prompts only."""
    sizes = study.info.sizes
    forward = [cost.forward_operations(sizes, each.tokens) / median(each.forward) for each in study.lengths]
    rows = [cost.scoring_operations(sizes, each.tokens, each.k) / median(each.scoring) for each in study.counts]
    return Speed(median(forward), median(rows))


def _growth(points: Sequence[Point], speed: Speed, *, memory: bool = False, sizes: bool = False) -> str:
    header = [
        "", "requests a second", "x the first", "forward", "modelled", "scoring", "modelled", "neurons scored",
        "front end's CPU",
    ]  # fmt: skip
    header += ["model's process grew by", "predicted"] if memory else []
    header += ["parameters", "model's process"] if sizes else []
    return str(table(header, [_row(each, points[0], speed, memory, sizes) for each in points]))


def _row(point: Point, first: Point, speed: Speed, memory: bool, sizes: bool) -> list[object]:
    of = point.servers[0].sizes
    cells: list[object] = [
        point.label,
        _rates(point),
        _ratio(point, first),
        _milliseconds(median(point.forward)),
        _milliseconds(cost.forward_operations(of, point.tokens) / speed.forward),
        _milliseconds(median(point.scoring)),
        _milliseconds(cost.scoring_operations(of, point.tokens, point.k) / speed.rows),
        f"{median(point.scored):.0f}",
        _milliseconds(median(point.front_end)),
    ]
    if memory:
        predicted = cost.batch_bytes(of, torch.float32, point.batch, point.tokens)
        cells += [f"{point.growth / MEBIBYTE:,.0f} MiB", f"{predicted / MEBIBYTE:,.0f} MiB for {point.batch}"]
    if sizes:
        parameters = cost.weight_bytes(of, torch.float32, tied=True) / 4
        cells += [f"{parameters / 1e6:.0f} M", f"{point.servers[0].loaded / MEBIBYTE:,.0f} MiB"]
    return cells


def _replicas(point: Point, points: Sequence[Point]) -> list[object]:
    return [point.label, _rates(point), _ratio(point, points[0])]


def _rates(point: Point) -> str:
    return f"{point.rate:.2f} ({min(point.rates):.2f} to {max(point.rates):.2f})"


def _ratio(point: Point, first: Point) -> str:
    """Round by round, so that what slowed a round down slowed both."""
    return f"{median(a / b for a, b in zip(point.rates, first.rates, strict=True)):.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def _memory(sizes: ModelSizes, device: Device) -> list[object]:
    weights = cost.weight_bytes(sizes, torch.bfloat16, tied=False)
    free = device.memory - weights
    return [f"{weights / 1e9:.1f} GB", *(cost.largest_batch(sizes, torch.bfloat16, each, free) for each in LENGTHS)]


def _rate(sizes: ModelSizes, device: Device, tokens: int, k: int) -> str:
    """Requests a second, and what part of the time scoring takes."""
    seconds = cost.seconds(sizes, tokens, k, device.speed)
    scoring = cost.scoring_operations(sizes, tokens, k) / device.speed.rows
    return f"{1 / seconds:.1f} ({scoring / seconds:.0%})"


def _conditions(study: Study, plan: Plan) -> dict[str, object]:
    sizes = study.info.sizes
    return {
        "model": f"{study.info.model.name}: {sizes.layers} layers, {sizes.heads} heads, d {sizes.hidden_size}, "
        f"FFN {sizes.ffn_width}, vocabulary {sizes.vocabulary}",
        "dtype and device": f"{study.info.model.dtype}, {study.info.device}",
        "machine": f"{_processor()}, {os.cpu_count()} cores; {THREADS} threads a server; callers on the same machine",
        "callers": f"{CALLERS} a server, each asking again once answered; every prompt another, no cache",
        "rounds": f"{plan.rounds} of {plan.seconds:g} s a point, the points taking turns; median (least to most)",
        "load of the machine at the start": f"{study.load:.2f}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", information.read_text() if information.is_file() else "", re.MULTILINE)
    return names[0] if names else platform.machine()
