"""Tasks become batches: while the worker runs one batch, the next one forms in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from neuron_attribution.errors import (
    DeadlineExceededError,
    NeuronAttributionError,
    ResourceExhaustedError,
    UnavailableError,
)

from neuron_attribution_server.config import ServerConfig
from neuron_attribution_server.request_queue import Delivery, QueuedTask, RequestQueue
from neuron_attribution_server.tasks import Answer, MemoryCost, Task
from neuron_attribution_server.worker import Worker

_SHORTEST_RETRY = 0.1
_LONGEST_RETRY = 30.0
_RESTART_RETRY = 5.0


class Scheduler:
    """Feeds one worker. Use it from the event loop only."""

    def __init__(self, worker: Worker, config: ServerConfig, memory: MemoryCost) -> None:
        self._worker = worker
        self._maximum_wait = config.maximum_wait
        self._queue = RequestQueue(
            requests=config.queued_requests,
            tokens=config.queued_tokens,
            batch_requests=config.batch_requests,
            batch_tokens=config.batch_tokens,
            memory=memory,
        )
        self._arrival = asyncio.Event()
        self._batch_seconds = 0.0
        self._expected = 0

    def check_room(self, tokens: int = 1) -> None:
        """Raise ResourceExhaustedError where no task of that many tokens can be taken.

        Room appears with each batch, so the time to come back after is that of the last one. While no worker lives
        there are none: UnavailableError sends the caller to another server.
        """
        try:
            self._queue.check_room(tokens, min(max(self._batch_seconds, _SHORTEST_RETRY), _LONGEST_RETRY))
        except ResourceExhaustedError as error:
            if self._worker.is_live:
                raise
            message = f"the worker is being restarted, and the queue is full; try again in {_RESTART_RETRY:g} seconds"
            raise UnavailableError(message, reason="WORKER_RESTARTING", retry_after=_RESTART_RETRY) from error

    async def submit(self, task: Task, deadline: float | None) -> Delivery:
        """Queue a task and wait for its outcome, until `deadline` on the event loop's clock.

        Raises ResourceExhaustedError for a full queue, DeadlineExceededError, and whatever the task failed with.
        Cancelling the call takes the task out of the queue.
        """
        self.check_room(task.tokens)
        item = self._enqueue(task, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                delivery = await item.delivery
        except TimeoutError:
            raise DeadlineExceededError("the time allowed ran out; the work was dropped") from None
        finally:
            self._queue.discard(item)
        if isinstance(delivery.outcome, NeuronAttributionError):
            raise delivery.outcome
        return delivery

    async def run(self) -> None:
        """Run batches until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            if not self._queue:
                await self._first_arrival()
                await self._fill()
            await self._worker.ready()  # what expires meanwhile is still in the queue, and never runs
            batch = self._queue.pop_batch(clock())
            if batch:
                started = clock()
                await self._run_batch(batch, started)
                self._batch_seconds = clock() - started

    def _enqueue(self, task: Task, deadline: float | None) -> QueuedTask:
        loop = asyncio.get_running_loop()
        item = QueuedTask(task, loop.time(), deadline, loop.create_future())
        self._queue.add(item)
        self._arrival.set()
        return item

    async def _first_arrival(self) -> None:
        while not self._queue:
            self._arrival.clear()
            await self._arrival.wait()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While a call is read and tokenized, an idle worker waits for it, up to the maximum wait."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._arrival.set()

    async def _fill(self) -> None:
        """Let calls that are on their way share the batch of an idle worker; a lone call waits for nobody."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._maximum_wait):
                while self._expected and not self._queue.has_full_batch:
                    self._arrival.clear()
                    await self._arrival.wait()

    async def _run_batch(self, batch: list[QueuedTask], started: float) -> None:
        outcomes: list[Answer]
        try:
            outcomes = await self._worker.run([item.task for item in batch])
        except NeuronAttributionError as error:
            outcomes = [error] * len(batch)
        for item, outcome in zip(batch, outcomes, strict=True):
            item.deliver(outcome, started)
