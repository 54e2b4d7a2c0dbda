"""What the measured part of docs/capacity.md is measured on: which servers, which requests, in what order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from neuron_attribution import AsyncClient, Client
from neuron_attribution.results import ModelInfo
from service.demo_server import serving

from load.capacity import Bounds, Step, search
from load.growth import Point, Server, measure, server
from load.mix import Mix
from load.shapes import SHAPES, save_shape
from load.target import Target

TOKENS, SHORT = (16, 64, 256, 1024), 16
COUNTS = (10, 100, 300, 1000)
THREADS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each point is kept busy, how often, and what the search for the capacity keeps to."""

    seconds: float
    rounds: int
    bounds: Bounds
    tokens: tuple[int, ...] = TOKENS
    counts: tuple[int, ...] = COUNTS
    shapes: tuple[str, ...] = tuple(SHAPES)


@dataclass(frozen=True, slots=True)
class Study:
    """What was found."""

    info: ModelInfo
    lengths: list[Point]
    counts: list[Point]
    shapes: list[Point]
    replicas: list[Point]
    steps: list[Step]


def study(plan: Plan, mix: Mix, generator: np.random.Generator) -> Study:
    """Measure everything."""
    with served("--threads", str(THREADS)) as (demo, info):
        base = Point(f"{SHORT} tokens, k = 10", [demo], SHORT)
        counts = [Point(f"{SHORT} tokens, k = {k}", [demo], SHORT, k) for k in plan.counts if k != base.k]
        lengths = [Point(f"{tokens} tokens, k = 10", [demo], tokens) for tokens in plan.tokens if tokens != SHORT]
        measure([base, *counts, *lengths], plan.rounds, plan.seconds, mix.prose, generator)
        shapes = _by_shape(plan, demo, mix, generator)
        steps = _search(plan, demo, mix, generator)
    return Study(info, [base, *lengths], [base, *counts], shapes, _by_replicas(plan, mix, generator), steps)


def _by_shape(plan: Plan, demo: Server, mix: Mix, generator: np.random.Generator) -> list[Point]:
    points = [Point("the demo model", [demo], SHORT)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        for number, name in enumerate(plan.shapes):
            save_shape(name, folder / str(number))
            options = ("--model", str(folder / str(number)), "--threads", str(THREADS))
            other, _ = stack.enter_context(served(*options))
            points.append(Point(f"random weights, {name}", [other], SHORT))
        measure(points, plan.rounds, plan.seconds, mix.prose, generator)
    return points


def _by_replicas(plan: Plan, mix: Mix, generator: np.random.Generator) -> list[Point]:
    with served("--threads", "1") as (first, _), served("--threads", "1") as (second, _):
        points = [Point("1 server", [first], SHORT), Point("2 servers", [first, second], SHORT)]
        measure(points, plan.rounds, plan.seconds, mix.prose, generator)
    return points


def _search(plan: Plan, demo: Server, mix: Mix, generator: np.random.Generator) -> list[Step]:
    target = Target(lambda: AsyncClient(demo.address), mix, generator)
    target.warm_up()
    seconds = 3 * plan.seconds
    return search(lambda rate: target.run(rate, seconds), 0.5, plan.bounds, seconds)


@contextmanager
def served(*options: str) -> Iterator[tuple[Server, ModelInfo]]:
    """A server of its own."""
    with serving(*options) as (address, process):
        with Client(address) as client:
            info = client.get_model()
        yield server(address, process.pid, info.sizes), info
