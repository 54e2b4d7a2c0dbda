"""Ten times what a server can do, for a minute: `python -m soak.overload` from the tests' folder (`--seconds`).

A server process and its worker process serve a fake engine whose batches take a fixed time, so the capacity is known.
Callers come at a fixed rate whatever is answered, and a process of its own asks for the health all the while.
"""

import argparse
import asyncio
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import quantiles

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.fakes import BATCH_SECONDS
from service.servers import attribution, listening_address, server_process

FACTOR = 10
PATIENCE = 30
PROBE_SECONDS = 0.05
HEALTH_TARGET = 0.1
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Bounds:
    """The settings under which a server is overloaded."""

    queued_requests: int = 32
    batch_requests: int = 4

    @property
    def capacity(self):
        """Calls per second."""
        return self.batch_requests / BATCH_SECONDS

    @property
    def longest_wait(self):
        """Seconds: the running batch, and all that wait."""
        return BATCH_SECONDS * (1 + self.queued_requests / self.batch_requests)


@dataclass
class Overload:
    """What callers saw: seconds of the accepted calls and of health checks; bytes of the server's memory over time."""

    accepted: list = field(default_factory=list)
    codes: Counter = field(default_factory=Counter)
    pushbacks: list = field(default_factory=list)
    health: list = field(default_factory=list)
    memory: list = field(default_factory=list)
    wait_afterwards: float = 0.0

    @property
    def growth(self):
        """Bytes that the memory grew by after the first third."""
        return max(self.memory) - max(self.memory[: len(self.memory) // 3 + 1])


def overload(seconds, bounds):
    """Overload a server process for so many seconds."""
    settings = {"queued_requests": bounds.queued_requests, "batch_requests": bounds.batch_requests, "cache_bytes": 0}
    with (
        server_process("make_timed_engine", **settings) as process,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as prober,
    ):
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready")
        found = Overload()
        prober.submit(probe, address, 0).result()  # the process is up before the load
        probed = prober.submit(probe, address, seconds)
        asyncio.run(_offer(address, seconds, bounds, psutil.Process(process.pid), found))
        found.health = probed.result()
    return found


def probe(address, seconds):
    """The seconds that each health check took. Runs in a process of its own, which the load does not slow down."""
    taken, end = [], time.monotonic() + seconds
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        while time.monotonic() < end:
            started = time.perf_counter()
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == 1
            taken.append(time.perf_counter() - started)
            time.sleep(PROBE_SECONDS)
    return taken


async def _offer(address, seconds, bounds, process, found):
    rate = FACTOR * bounds.capacity
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        stub = services.NeuronAttributionServiceStub(channel)
        start = time.monotonic()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(start + number / rate - time.monotonic())
            group.create_task(_call(stub, found))
            if number % round(bounds.capacity) == 0:
                found.memory.append(process.memory_info().rss)
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await services.NeuronAttributionServiceStub(channel).Attribute(attribution(), timeout=PATIENCE)
        found.wait_afterwards = answer.timings.queue.ToNanoseconds() / 1e9


async def _call(stub, found):
    started = time.perf_counter()
    try:
        await stub.Attribute(attribution(), timeout=PATIENCE)
    except grpc.aio.AioRpcError as error:
        found.codes[error.code().name] += 1
        pushback = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
        found.pushbacks += [] if pushback is None else [int(pushback)]
    else:
        found.codes["OK"] += 1
        found.accepted.append(time.perf_counter() - started)


def _table(seconds, bounds, found):
    percentile = {name: quantiles(getattr(found, name), n=100) for name in ("accepted", "health")}
    offered = found.codes.total()
    return [
        ("offered", f"{offered} calls, {offered / seconds:.0f} per second"),
        ("capacity", f"{bounds.capacity:.0f} calls per second, batches of {bounds.batch_requests}"),
        *((code, str(count)) for code, count in found.codes.most_common()),
        ("accepted, p50 / p99 / max", _milliseconds(percentile["accepted"], found.accepted)),
        ("longest wait by the queue's length", f"{bounds.longest_wait * 1000:.0f} ms"),
        ("pushback, least / most", f"{min(found.pushbacks)} / {max(found.pushbacks)} ms"),
        ("health, p50 / p99 / max", _milliseconds(percentile["health"], found.health)),
        ("health p99 under 100 ms", "yes" if percentile["health"][98] < HEALTH_TARGET else "no"),
        ("memory, least / most", " / ".join(f"{f(found.memory) / MEBIBYTE:.0f}" for f in (min, max)) + " MiB"),
        ("memory growth after a third", f"{found.growth / MEBIBYTE:.1f} MiB"),
        ("wait of a call afterwards", f"{found.wait_afterwards * 1000:.1f} ms"),
    ]


def _milliseconds(percentiles, values):
    return " / ".join(f"{value * 1000:.0f}" for value in (percentiles[49], percentiles[98], max(values))) + " ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    bounds = Bounds()
    for name, value in _table(seconds, bounds, overload(seconds, bounds)):
        print(f"{name:36}{value}")


if __name__ == "__main__":
    main()
