"""The workers of all devices behind the interface of one: each batch goes to an idle one, and survives its death."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from neuron_attribution.errors import UnavailableError

from neuron_attribution_server.config import ServerConfig
from neuron_attribution_server.process_worker import ProcessWorker
from neuron_attribution_server.reports import BatchReport
from neuron_attribution_server.restarts import Restarts
from neuron_attribution_server.supervised_worker import SupervisedWorker
from neuron_attribution_server.tasks import Answer, ModelFacts, Task
from neuron_attribution_server.worker import NOBODY, DeviceState, EngineFactory, Listener

_RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)


class WorkerPool:
    """One supervised worker per device. Use it from the event loop only."""

    def __init__(self, workers: Sequence[SupervisedWorker]) -> None:
        self._workers = workers
        self._idle: asyncio.Queue[tuple[SupervisedWorker, ProcessWorker] | None] = asyncio.Queue()
        self._busy: set[ProcessWorker] = set()
        self._interrupted: set[ProcessWorker] = set()
        self._supervising: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def capacity(self) -> int:
        """The number of workers, live or not."""
        return len(self._workers)

    @property
    def is_live(self) -> bool:
        """Whether at least one worker is loaded and warm."""
        return not self._ended.is_set() and any(each.worker.is_live for each in self._workers)

    def devices(self) -> Sequence[DeviceState]:
        """The state of each worker that has been loaded."""
        return [
            DeviceState(each.device, each.worker.is_live, each.restarts.total, each.worker.pid)
            for each in self._workers
            if each.device
        ]

    async def start(self) -> ModelFacts:
        """Start every worker; memory is that of the device with the least. Raises ModelLoadError."""
        facts = await asyncio.gather(*(each.start() for each in self._workers))
        self._supervising = [asyncio.create_task(self._supervise(each)) for each in self._workers]
        return replace(facts[0], memory=min((each.memory for each in facts), key=lambda cost: cost.available))

    async def ready(self) -> None:
        """Wait for a live worker, while one may still come."""
        while not self.is_live and not self._ended.is_set():
            await self.changed()

    async def run(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one batch. If its worker dies, its tasks run once more, one by one: only what kills again fails.

        Nobody's task is not run again. Raises UnavailableError once no worker will come back.
        """
        try:
            return await self._attempt(tasks, listener)
        except UnavailableError as error:
            if self._ended.is_set():
                raise
            _log.warning("running the tasks of a lost batch again, one by one: %d (%s)", len(tasks), error.message)
        again = _Again(listener)
        return [
            await self._alone(task, again) if listener.wanted(place) else _abandoned()
            for place, task in enumerate(tasks)
        ]

    async def interrupt(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one short batch inside one that runs; where none does any more, as `run`."""
        worker = next(iter(self._busy - self._interrupted), None)
        if worker is None:
            return await self.run(tasks, listener)
        self._interrupted.add(worker)
        try:
            return await worker.run(tasks, listener)
        except UnavailableError:
            return await self.run(tasks, listener)
        finally:
            self._interrupted.discard(worker)

    async def changed(self) -> None:
        """Wait until a worker goes live or dies."""
        await self._changed.wait()

    async def ended(self) -> None:
        """Wait until a worker has died too often."""
        await self._ended.wait()

    async def stop(self) -> None:
        """End every worker."""
        for supervising in self._supervising:
            supervising.cancel()
        await asyncio.gather(*self._supervising, return_exceptions=True)
        await asyncio.gather(*(each.stop() for each in self._workers))

    async def _attempt(self, tasks: Sequence[Task], listener: Listener) -> list[Answer]:
        supervised, worker = await self._next_idle()
        self._busy.add(worker)
        try:
            answers = await worker.run(tasks, listener)
        finally:
            self._busy.discard(worker)
        # After a death or a cancellation it is not idle again: the one has ended, the other one still computes.
        supervised.restarts.worked()
        self._idle.put_nowait((supervised, worker))
        return answers

    async def _alone(self, task: Task, listener: Listener) -> Answer:
        try:
            [answer] = await self._attempt([task], listener)
        except UnavailableError as error:
            return error if self._ended.is_set() else _deadly(error)
        return answer

    async def _next_idle(self) -> tuple[SupervisedWorker, ProcessWorker]:
        while True:
            idle = await self._idle.get()
            if idle is None:
                self._idle.put_nowait(None)  # for whoever else waits
                raise _gone()
            if idle[1].is_live:
                return idle

    async def _supervise(self, supervised: SupervisedWorker) -> None:
        try:
            await supervised.supervise(self._on_change)
        except Exception:
            _log.exception("the supervision of a worker failed")
        self._ended.set()
        self._idle.put_nowait(None)
        self._announce()

    def _on_change(self, supervised: SupervisedWorker) -> None:
        if supervised.worker.is_live:
            self._idle.put_nowait((supervised, supervised.worker))
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Again(Listener):
    """Passes on the reports of what runs again, one task of many at a time."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def reported(self, report: BatchReport) -> None:
        self._listener.reported(report)


def worker_pool(config: ServerConfig, factories: Sequence[EngineFactory]) -> WorkerPool:
    """One worker process for each factory, as the settings say."""
    workers = []
    for index, factory in enumerate(factories):
        name = f"worker-{index}"
        spawn = partial(
            ProcessWorker,
            factory,
            name=name,
            log_level=config.log_level,
            load_timeout=config.load_timeout,
            log_format=config.log_format,
            heartbeat_timeout=config.heartbeat_timeout,
            batch_timeout=config.batch_timeout,
        )
        workers.append(SupervisedWorker(spawn, name, Restarts(config.restarts, config.restart_window)))
    return WorkerPool(workers)


def _gone() -> UnavailableError:
    return UnavailableError(
        "the workers died too often and the server ends; try again", reason="WORKER_GONE", retry_after=_RETRY_SECONDS
    )


def _abandoned() -> UnavailableError:
    return UnavailableError("the worker died, and nobody waits for this request any more", reason="WORKER_DIED")


def _deadly(error: UnavailableError) -> UnavailableError:
    """No time to try again after is given: a request that kills workers must not be sent again by itself."""
    return UnavailableError(
        f"the worker died twice while it ran this request; it is not run again ({error.message})", reason="WORKER_DIED"
    )
