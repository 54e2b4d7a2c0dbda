"""A worker in a thread of the same process, for tests: the model's Python code slows the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from neuron_attribution_server.front_end.workers.interface import NOBODY, DeviceState, Listener, check_warm_up
from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.model_facts import Engine, ModelFacts
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import WARM_UP, run_batch
from neuron_attribution_server.tasks.tasks import Task


class ThreadWorker:
    """Runs an engine in one thread; the engine's `facts` may block until it is ready."""

    capacity = 1
    is_live = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._device = ""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")

    async def start(self) -> ModelFacts:
        """Return the engine's facts once it is ready and warm."""
        facts = await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._engine.facts)
        self._device = facts.device
        check_warm_up(await self.run([WARM_UP]))
        return facts

    async def ready(self) -> None:
        """Return at once."""

    async def run(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one batch."""
        report = BatchReport()
        loop = asyncio.get_running_loop()

        def computed() -> None:
            loop.call_soon_threadsafe(listener.computed)

        answers = await loop.run_in_executor(self._thread, run_batch, self._engine, tasks, report, computed)
        listener.reported(report)
        return answers

    async def interrupt(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one batch after the one that runs: a thread has no pipe to look into."""
        return await self.run(tasks, listener)

    def devices(self) -> Sequence[DeviceState]:
        """The engine's device, once loaded."""
        return [DeviceState(self._device, self.is_live)] if self._device else []

    async def changed(self) -> None:
        """Never returns."""
        await asyncio.Event().wait()

    async def ended(self) -> None:
        """Never returns: a thread does not end by itself."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Let the running batch finish and end the thread."""
        await asyncio.to_thread(self._thread.shutdown)
