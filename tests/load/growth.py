"""How requests a second and memory grow: servers kept busy in turn, so that ratios are of one run.

Each point is one kind of request to one or several servers. A few callers a server ask again as soon as they are
answered, so that a batch is always waiting. Points take turns, round after round.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from neuron_attribution import AsyncClient, AttributeResult
from neuron_attribution.results import ModelSizes, Timings
from service.servers import worker_processes
from soak.processes import resident_bytes

from load.calls import Requests, material
from load.mix import Kind

CALLERS = 8
PATIENCE = 600.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server process of this machine and what it serves; `loaded` is the model's process in bytes, once ready."""

    address: str
    front_end: int
    model: int
    loaded: int
    sizes: ModelSizes


@dataclass(slots=True)
class Point:
    """One kind of request, with what was found of it: a number each round."""

    label: str
    servers: Sequence[Server]
    tokens: int
    k: int = 10
    rates: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    """Seconds a request, as the server reports them."""
    front_end: list[float] = field(default_factory=list)
    """Seconds of the front end's CPU a request."""
    peaks: list[int] = field(default_factory=list)
    scored: list[float] = field(default_factory=list)
    batch: int = 0

    @property
    def kind(self) -> Kind:
        """The request."""
        return Kind(name=self.label, call="attribute", tokens=(self.tokens, self.tokens), arguments={"top_k": self.k})

    @property
    def rate(self) -> float:
        """Requests a second, the median of the rounds."""
        return median(self.rates)

    @property
    def growth(self) -> int:
        """Bytes that the model's process took beyond those at the start; of the first round, before larger points."""
        return self.peaks[0] - self.servers[0].loaded


def server(address: str, pid: int, sizes: ModelSizes) -> Server:
    """A ready server with one worker process."""
    [model] = worker_processes(pid)
    return Server(address, pid, model, resident_bytes(model), sizes)


def measure(points: Sequence[Point], rounds: int, seconds: float, prose: str, generator: np.random.Generator) -> None:
    """Fill the points in; the first round goes through them in order, the others start elsewhere."""
    for number in range(rounds):
        start = number % len(points)
        for point in [*points[start:], *points[:start]]:
            print(f"round {number + 1} of {rounds}: {point.label}", file=sys.stderr, flush=True)
            asyncio.run(_turn(point, seconds, prose, generator))


async def _turn(point: Point, seconds: float, prose: str, generator: np.random.Generator) -> None:
    first = point.servers[0]
    address = "ipv4:" + ",".join(f"127.0.0.1:{each.address.rpartition(':')[2]}" for each in point.servers)
    async with AsyncClient(address, timeout=PATIENCE) as client:
        requests = Requests(client, await material(client, prose), generator)
        await requests.call(point.kind)()
        _reset_peak(first.model)
        before, start = _cpu_seconds(first.front_end), time.perf_counter()
        results = await _busy(requests, point.kind, CALLERS * len(point.servers), start + seconds)
        elapsed = time.perf_counter() - start
    point.rates.append(len(results) / elapsed)
    point.front_end.append((_cpu_seconds(first.front_end) - before) * len(point.servers) / len(results))
    point.peaks.append(_peak(first.model))
    _note(point, results)


async def _busy(requests: Requests, kind: Kind, callers: int, end: float) -> list[AttributeResult]:
    results: list[AttributeResult] = []

    async def caller() -> None:
        while time.perf_counter() < end:
            result = await requests.call(kind)()
            assert isinstance(result, AttributeResult)
            results.append(result)

    await asyncio.gather(*[caller() for _ in range(callers)])
    return results


def _note(point: Point, results: Sequence[AttributeResult]) -> None:
    batches: dict[tuple[float, float], Timings] = {
        (each.timings.forward, each.timings.scoring): each.timings for each in results
    }
    requests = sum(each.batch_requests for each in batches.values())
    point.forward.append(sum(each.forward for each in batches.values()) / requests)
    point.scoring.append(sum(each.scoring for each in batches.values()) / requests)
    point.batch = max([point.batch, *(each.timings.batch_requests for each in results)])
    point.scored.append(float(np.mean([_scored(each) for each in results])))


def _scored(result: AttributeResult) -> int:
    [explanation] = result.explanations
    rankings = (explanation.ffn_value_neurons, explanation.attention_value_neurons)
    return sum(each.coverage.scored for each in rankings if each is not None)


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _reset_peak(pid: int) -> None:
    """Let the kernel count VmHWM from here on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
