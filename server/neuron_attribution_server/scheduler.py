"""Tasks become batches: while the worker runs as many as it can, the next one forms in the queue."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from neuron_attribution.errors import (
    DeadlineExceededError,
    NeuronAttributionError,
    ResourceExhaustedError,
    UnavailableError,
)

from neuron_attribution_server.batch_observer import BatchObservation, BatchObserver
from neuron_attribution_server.batches import BatchLimits
from neuron_attribution_server.calls import current_call
from neuron_attribution_server.config import ServerConfig
from neuron_attribution_server.reports import BatchReport
from neuron_attribution_server.request_queue import Delivery, QueuedTask, QueueLimits, RequestQueue
from neuron_attribution_server.tasks import Answer, MemoryCost, Task
from neuron_attribution_server.tenants import current_tenant
from neuron_attribution_server.worker import Listener, Worker, failed_batch, unheard

_SHORTEST_RETRY = 0.1
_LONGEST_RETRY = 30.0
_RESTART_RETRY = 5.0
_JITTER = 0.2
"""The part by which times to come back after differ, so that callers do not all come back at once."""

_log = logging.getLogger(__name__)


class Scheduler:
    """Feeds one worker. Use it from the event loop only."""

    def __init__(self, worker: Worker, config: ServerConfig, memory: MemoryCost, observer: BatchObserver) -> None:
        self._worker = worker
        self._observer = observer
        self._maximum_wait = config.maximum_wait
        self._queue = RequestQueue(
            QueueLimits(requests=config.queued_requests, tokens=config.queued_tokens, tenant_share=config.tenant_share),
            BatchLimits(requests=config.batch_requests, tokens=config.batch_tokens, memory=memory),
            config.maximum_age,
        )
        self._arrival = asyncio.Event()
        self._batch_seconds = 0.0
        self._expected = 0

    @property
    def queue(self) -> RequestQueue:
        """What waits."""
        return self._queue

    def check_room(self, tokens: int = 1) -> None:
        """Raise ResourceExhaustedError where no task of that many tokens can be taken from the current tenant.

        While no worker lives no room appears: UnavailableError sends the caller to another server.
        """
        try:
            self._queue.check_room(current_tenant.get(), tokens, self._retry_after())
        except ResourceExhaustedError as error:
            if self._worker.is_live:
                raise
            message = f"the worker is being restarted, and the queue is full; try again in {_RESTART_RETRY:g} seconds"
            raise UnavailableError(message, reason="WORKER_RESTARTING", retry_after=_RESTART_RETRY) from error

    async def submit(self, task: Task, deadline: float | None, computed: Callable[[], None] = unheard) -> Delivery:
        """Queue a task of the current tenant and wait for its outcome, until `deadline` on the event loop's clock.

        Raises ResourceExhaustedError for a full queue, DeadlineExceededError, and whatever the task failed with.
        Cancelling the call takes the task out of the queue.
        """
        self.check_room(task.tokens)
        item = self._enqueue(task, deadline, computed)
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
        """Run batches until cancelled, as many at the same time as the worker can."""
        clock = asyncio.get_running_loop().time
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                if not self._queue:
                    await self._first_arrival()
                    await self._fill()
                await self._worker.ready()  # what expires meanwhile is still in the queue, and never runs
                if batch := self._queue.pop_batch(clock()):
                    running.add(group.create_task(self._run_batch(batch)))
                while len(running) >= self._worker.capacity:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _retry_after(self) -> float:
        """Seconds that the waiting batches may take."""
        seconds = self._batch_seconds * self._queue.batches / self._worker.capacity
        return min(max(seconds, _SHORTEST_RETRY), _LONGEST_RETRY) * random.uniform(1 - _JITTER, 1 + _JITTER)

    def _enqueue(self, task: Task, deadline: float | None, computed: Callable[[], None]) -> QueuedTask:
        loop = asyncio.get_running_loop()
        call = current_call.get(None)
        item = QueuedTask(task, current_tenant.get(), loop.time(), deadline, loop.create_future(), call, computed)
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
        clock = asyncio.get_running_loop().time
        with suppress(TimeoutError):
            async with asyncio.timeout(self._maximum_wait):
                while self._expected and not self._queue.has_full_batch(clock()):
                    self._arrival.clear()
                    await self._arrival.wait()

    async def _run_batch(self, batch: list[QueuedTask]) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        tasks = [item.task for item in batch]
        outcomes: list[Answer]
        observation = self._observer.begins(batch, started)
        try:
            outcomes = await self._worker.run(tasks, _BatchListener(batch, observation))
        except NeuronAttributionError as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # else no later batch would run
            _log.exception("a batch of %d tasks failed", len(batch))
            outcomes = failed_batch(error, tasks)
        finally:
            observation.ends()
        self._batch_seconds = clock() - started
        for item, outcome in zip(batch, outcomes, strict=True):
            item.deliver(outcome, started)


class _BatchListener(Listener):
    """Passes on to a batch's callers and to its observation what concerns them."""

    def __init__(self, batch: Sequence[QueuedTask], observation: BatchObservation) -> None:
        self._batch = batch
        self._observation = observation

    def wanted(self, place: int) -> bool:
        return self._batch[place].is_wanted(asyncio.get_running_loop().time())

    def computed(self) -> None:
        for item in self._batch:
            if not item.delivery.done():  # else its call has ended
                item.computed()

    def reported(self, report: BatchReport) -> None:
        self._observation.reported(report)
