"""Callers on many servers at once, in a thread of their own."""

import asyncio
import threading
from contextlib import contextmanager, suppress
from itertools import cycle

import grpc
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.servers import PATIENCE

PAUSE = 0.2
"""Seconds between two calls of one caller, where nothing else is said."""


@contextmanager
def calling(lines):
    """Call all the time: `lines` are (address, root certificate or None, requests to take in turn, callers, pause)."""
    ringing = _Calling(lines)
    thread = threading.Thread(target=lambda: asyncio.run(ringing.run()))
    thread.start()
    ringing.started.wait()
    try:
        yield
    finally:
        ringing.loop.call_soon_threadsafe(ringing.ending.set)
        thread.join()


class _Calling:
    def __init__(self, lines):
        self._lines = lines
        self.started = threading.Event()

    async def run(self):
        self.loop, self.ending = asyncio.get_running_loop(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_call_on(*line)) for line in self._lines]
            self.started.set()
            await self.ending.wait()
            for task in tasks:
                task.cancel()


async def _call_on(address, root, requests, callers, pause):
    """Call one server; what it answers does not matter."""
    turns = cycle(requests)

    async def call():
        while True:
            with suppress(grpc.aio.AioRpcError):
                await stub.Attribute(next(turns), timeout=PATIENCE)
            await asyncio.sleep(pause)

    async with _channel(address, root) as channel, asyncio.TaskGroup() as group:
        stub = services.NeuronAttributionServiceStub(channel)
        for _ in range(callers):
            group.create_task(call())


def _channel(address, root):
    options = [("grpc.enable_retries", 0)]
    if root is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root), options)
