"""Makes calls when their callers come, whatever became of those before: an open loop.

Latency counts from when the caller came, not from when the call was sent. Were it the latter, a stall of the server or
of this process would be seen by the one call that waits for it, and not by all those that came meanwhile (coordinated
omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from neuron_attribution import NeuronAttributionError
from neuron_attribution.transport.status import status_code

from load.arrivals import Arrival
from load.mix import Kind

OK = "OK"


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of a call; times are seconds after the start."""

    kind: str
    intended: float
    started: float
    ended: float
    code: str

    @property
    def latency(self) -> float:
        """Seconds from when the caller came to the answer."""
        return self.ended - self.intended

    @property
    def lateness(self) -> float:
        """Seconds by which the call was sent too late: this process was busy."""
        return self.started - self.intended


async def offer(arrivals: Iterable[Arrival], call: Callable[[Kind], Awaitable[object]]) -> list[Sample]:
    """Make every call at its time and wait for all answers; samples in the order of the answers."""
    samples: list[Sample] = []
    start = time.perf_counter()

    async def make(arrival: Arrival) -> None:
        started = time.perf_counter() - start
        code = await _code(call(arrival.kind))
        samples.append(Sample(arrival.kind.name, arrival.at, started, time.perf_counter() - start, code))

    async with asyncio.TaskGroup() as calls:
        for arrival in arrivals:
            await asyncio.sleep(start + arrival.at - time.perf_counter())
            calls.create_task(make(arrival))
    return samples


async def _code(call: Awaitable[object]) -> str:
    try:
        await call
    except NeuronAttributionError as error:
        return status_code(error).name
    return OK
