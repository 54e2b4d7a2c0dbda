"""Tasks become batches: while the worker runs as many as it can, the next one forms in the queue."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from neuron_attribution.errors import (
    DeadlineExceededError,
    NeuronAttributionError,
    ResourceExhaustedError,
    UnavailableError,
)

from neuron_attribution_server.front_end.calls.calls import current_call
from neuron_attribution_server.front_end.calls.tenants import current_tenant
from neuron_attribution_server.front_end.scheduling.batch_observer import BatchObservation, BatchObserver
from neuron_attribution_server.front_end.scheduling.batches import BatchLimits
from neuron_attribution_server.front_end.scheduling.request_queue import Delivery, QueuedTask, QueueLimits, RequestQueue
from neuron_attribution_server.front_end.workers.interface import Listener, Worker
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import do_nothing, failed_batch
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, Task
from neuron_attribution_server.tasks.work_prices import WorkPredictor

_SHORTEST_RETRY = 0.1
_LONGEST_RETRY = 30.0
_RESTART_RETRY = 5.0
SHORT_SECONDS = 1.0
SHORT_TASK = AttributeTask(token_ids=(0,) * 16, explained=(ExplainedToken(15),))
"""Short is what takes no more seconds, or no longer than two of this: where the device is slow or busy, all takes long.

What is as short as that, and has a few more neurons, is not to wait as long work does.
"""
SHORTER_PART = 0.25
"""Of a long batch's seconds: what takes no more may run inside it, though it is not short."""
LONGEST_INSIDE = 10.0
"""Seconds that such a batch may take at most."""
_JITTER = 0.2
"""The part by which times to come back after differ, so that callers do not all come back at once."""

_Run = Callable[[Sequence[Task], Listener], Awaitable[list[Answer]]]

_log = logging.getLogger(__name__)


class Scheduler:
    """Feeds one worker. Use it from the event loop only."""

    def __init__(
        self,
        worker: Worker,
        config: ServerConfig,
        memory: MemoryCost,
        predictor: WorkPredictor,
        observer: BatchObserver,
    ) -> None:
        self._worker = worker
        self._observer = observer
        self._predictor = predictor
        self._maximum_wait = config.maximum_wait
        self._limits = BatchLimits(
            requests=config.batch_requests,
            tokens=config.batch_tokens,
            memory=memory,
            seconds=config.batch_seconds,
        )
        waiting = QueueLimits(
            requests=config.queued_requests,
            tokens=config.queued_tokens,
            seconds=config.queued_seconds,
            tenant_share=config.tenant_share,
        )
        self._queue = RequestQueue(waiting, self._limits, config.maximum_age, self._short_batch)
        self._arrival = asyncio.Event()
        self._news = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._long: list[list[QueuedTask]] = []
        self._short_inside: list[QueuedTask] = []
        self._shorter_inside: list[QueuedTask] = []
        self._expected = 0

    @property
    def queue(self) -> RequestQueue:
        """What waits."""
        return self._queue

    def check_room(self, tokens: int = 1, seconds: float = 0.0) -> None:
        """Raise ResourceExhaustedError where no such task can be taken from the current tenant.

        While no worker lives no room appears: UnavailableError sends the caller to another server.
        """
        try:
            self._queue.check_room(current_tenant.get(), tokens, seconds, self._retry_after())
        except ResourceExhaustedError as error:
            if self._worker.is_live:
                raise
            message = f"the worker is being restarted, and the queue is full; try again in {_RESTART_RETRY:g} seconds"
            raise UnavailableError(message, reason="WORKER_RESTARTING", retry_after=_RESTART_RETRY) from error

    async def submit(self, task: Task, deadline: float | None, computed: Callable[[], None] = do_nothing) -> Delivery:
        """Queue a task of the current tenant and wait for its outcome, until `deadline` on the event loop's clock.

        Raises ResourceExhaustedError for a full queue, DeadlineExceededError, and whatever the task failed with.
        Cancelling the call takes the task out of the queue.
        """
        seconds = self._predictor.seconds([task])
        self.check_room(task.tokens, seconds)
        item = self._enqueue(task, deadline, computed, seconds)
        try:
            async with asyncio.timeout_at(deadline):
                delivery = await item.delivery
        except TimeoutError:
            raise DeadlineExceededError("the time allowed ran out; the work was dropped") from None
        finally:
            self._queue.discard(item)
            item.left()
        if isinstance(delivery.outcome, NeuronAttributionError):
            try:
                raise delivery.outcome
            finally:
                del delivery, item, task  # with the error they would be garbage until that is looked for
        return delivery

    async def run(self) -> None:
        """Run batches until cancelled, as many at the same time as the worker can."""
        clock = asyncio.get_running_loop().time
        running = self._running
        async with asyncio.TaskGroup() as group:
            group.create_task(self._let_short_ones_first())
            group.create_task(self._let_shorter_ones_first())
            while True:
                if not self._queue:
                    await self._first_arrival()
                    await self._fill()
                await self._worker.ready()  # what expires meanwhile is still in the queue, and never runs
                if batch := self._queue.pop_batch(clock()):
                    running.add(group.create_task(self._run_next(batch)))
                while len(running) >= self._worker.capacity:
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    running -= done

    async def _run_next(self, batch: list[QueuedTask]) -> None:
        """Run a batch; a long one may be interrupted, and so may a short one that takes twice what it should."""
        loop, timers = asyncio.get_running_loop(), ExitStack()

        def begun() -> None:
            if seconds := self._undisturbed(batch):
                timers.callback(loop.call_later(seconds, self._is_long, batch).cancel)
            else:
                self._is_long(batch)

        try:
            with timers:
                await self._run_batch(batch, self._worker.run, begun)
        finally:
            self._long = [each for each in self._long if each is not batch]

    def _undisturbed(self, batch: Sequence[QueuedTask]) -> float:
        """Seconds that a batch which a device has got runs before others may run inside it."""
        if not all(item.is_short for item in batch):
            return 0.0
        return 2 * max(self._short_seconds, self._predictor.seconds([item.task for item in batch]))

    def _is_long(self, batch: list[QueuedTask]) -> None:
        self._long.append(batch)
        self._tell()

    async def _let_short_ones_first(self) -> None:
        """While every device is busy and a long batch runs, short tasks run inside it, two thirds of the time at most.

        Between them it goes on for no longer than one of them may take.
        """
        while True:
            short = self._short_seconds
            await self._run_inside(self._inside(2 * short), self._short_inside, short, short=True)

    async def _let_shorter_ones_first(self) -> None:
        """The same, half of the time, for tasks that are much shorter than the long batch: short ones go into them."""
        while True:
            most = max((_long_seconds(batch) for batch in self._long), default=0.0)
            seconds = min(SHORTER_PART * most, LONGEST_INSIDE)
            limits = None if self._short_inside else self._inside(seconds)
            await self._run_inside(limits, self._shorter_inside, seconds, short=False)

    async def _run_inside(
        self, limits: BatchLimits | None, inside: list[QueuedTask], pause: float, *, short: bool
    ) -> None:
        """Run the next batch inside a long one, and then let that go on as long, up to `pause` seconds.

        Where there is none, wait until there is news.
        """
        clock = asyncio.get_running_loop().time
        batch = [] if limits is None else self._queue.pop_shorter(clock(), limits, short=short)
        if not batch:
            news = self._news
            await news.wait()
            return
        started = clock()
        inside += batch
        try:
            await self._run_batch(batch, self._worker.interrupt)
        finally:
            inside.clear()
            self._tell()
        await asyncio.sleep(min(clock() - started, pause))

    def _inside(self, seconds: float) -> BatchLimits | None:
        """What may run inside a long batch, in the memory that is left; None where nothing waits for one."""
        if not self._long or len(self._running) < self._worker.capacity:
            return None
        memory = self._limits.memory
        held = max(memory.batch([item.task for item in batch]) for batch in self._long)
        for others in (self._short_inside, self._shorter_inside):
            held += memory.batch([item.task for item in others]) if others else 0
        memory = replace(memory, available=memory.available - held)
        return replace(self._limits, seconds=seconds, together=self._predictor.seconds, memory=memory)

    def _short_batch(self) -> BatchLimits:
        """A batch of short tasks: whoever comes meanwhile waits for all of it."""
        seconds = min(self._limits.seconds, 2 * self._short_seconds)
        return replace(self._limits, seconds=seconds, together=self._predictor.seconds)

    @property
    def _short_seconds(self) -> float:
        return max(SHORT_SECONDS, self._short_task_seconds)

    @property
    def _short_task_seconds(self) -> float:
        return self._predictor.seconds([SHORT_TASK])

    def _tell(self) -> None:
        """Wake whoever waits for news of what waits and what runs."""
        self._news.set()
        self._news = asyncio.Event()

    def _retry_after(self) -> float:
        """Seconds that the waiting tasks may take."""
        seconds = self._queue.seconds / self._worker.capacity
        return min(max(seconds, _SHORTEST_RETRY), _LONGEST_RETRY) * random.uniform(1 - _JITTER, 1 + _JITTER)

    def _enqueue(self, task: Task, deadline: float | None, computed: Callable[[], None], seconds: float) -> QueuedTask:
        loop = asyncio.get_running_loop()
        call, now = current_call.get(None), loop.time()
        item = QueuedTask(
            task,
            current_tenant.get(),
            now,
            deadline,
            loop.create_future(),
            call,
            computed,
            seconds,
            is_short=seconds <= max(SHORT_SECONDS, 2 * self._short_task_seconds),
        )
        self._queue.add(item)
        self._arrival.set()
        self._tell()
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

    async def _run_batch(self, batch: list[QueuedTask], run: _Run, begun: Callable[[], None] = do_nothing) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        tasks = [item.task for item in batch]
        outcomes: list[Answer]
        observation = self._observer.begins(batch, started)
        try:
            outcomes = await run(tasks, _BatchListener(batch, observation, self._has_run, begun))
        except NeuronAttributionError as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # else no later batch would run
            _log.exception("a batch of %d tasks failed", len(tasks))
            outcomes = failed_batch(error, tasks)
        finally:
            observation.ends()
            self._queue.charge(batch, min(clock() - started, math.fsum(item.seconds for item in batch)))
        for item, outcome in zip(batch, outcomes, strict=True):
            item.left = do_nothing  # there is nothing left to stop
            item.deliver(outcome, started)

    def _has_run(self, batch: Sequence[QueuedTask], report: BatchReport) -> None:
        """Learn from what a batch took, where that is known of all of it, and it did no other's work."""
        if report.tasks != len(batch) or report.has_prepared:
            return
        self._queue.charge(batch, report.seconds)
        tasks = [item.task for item in batch]
        self._observer.compared(self._predictor.seconds(tasks), report)
        if not report.stopped and not report.out_of_memory_splits:
            self._predictor.learn(tasks, report.seconds)


def _long_seconds(batch: Sequence[QueuedTask]) -> float:
    """What the long tasks of a batch are predicted to take, one by one."""
    return math.fsum(item.seconds for item in batch if not item.is_short)


class _BatchListener(Listener):
    """Passes on to a batch's callers and to its observation what concerns them; stops what nobody waits for."""

    def __init__(
        self,
        batch: Sequence[QueuedTask],
        observation: BatchObservation,
        has_run: Callable[[Sequence[QueuedTask], BatchReport], None],
        begun: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._observation = observation
        self._has_run = has_run
        self._begun = begun
        self._stops: list[Callable[[], None]] = []
        for item in batch:
            item.left = self._one_left

    def wanted(self, place: int) -> bool:
        return self._batch[place].is_wanted(asyncio.get_running_loop().time())

    def begins(self, stop: Callable[[], None]) -> None:
        self._stops.append(stop)  # parts of a lost batch run at the same time
        self._begun()
        self._one_left()

    def computed(self) -> None:
        for item in self._batch:
            if not item.delivery.done():  # else its call has ended
                item.computed()

    def reported(self, report: BatchReport) -> None:
        self._observation.reported(report)
        self._has_run(self._batch, report)

    def _one_left(self) -> None:
        if not any(map(self.wanted, range(len(self._batch)))):
            for stop in self._stops:
                stop()
