"""The workers of all devices behind the interface of one: each batch goes to an idle one, and survives its death."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from neuron_attribution.errors import UnavailableError

from neuron_attribution_server.front_end.workers.idle import IdleWorkers, NobodyComesError
from neuron_attribution_server.front_end.workers.interface import NOBODY, DeviceState, Listener
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.front_end.workers.restarts import Restarts
from neuron_attribution_server.front_end.workers.supervised import SupervisedWorker
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import EngineFactory
from neuron_attribution_server.tasks.tasks import Task

_RETRY_SECONDS = 1.0
_MOST_DEATHS = 2
"""Of workers that ran a request alone: one may be chance."""
_MOST_KILLS = 5
"""The same where somebody killed them from outside: who may be a system's agent that does so when memory runs out."""

_log = logging.getLogger(__name__)


class WorkerPool:
    """One supervised worker per device. Use it from the event loop only."""

    def __init__(self, workers: Sequence[SupervisedWorker]) -> None:
        self._workers = workers
        self._idle: IdleWorkers[tuple[SupervisedWorker, ProcessWorker]] = IdleWorkers()
        self._busy: set[ProcessWorker] = set()
        self._inside: Counter[ProcessWorker] = Counter()
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
            DeviceState(each.device, each.worker.is_live, each.restarts.total, each.worker.pid, each.worker.prepared)
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
        """Run one batch. If its worker dies, its tasks run again, by halves and then one by one.

        Most workers die of something else than their batch, and of a batch most tasks are innocent: only what kills
        twice alone fails. Nobody's task is not run again. Raises UnavailableError once no worker will come back.
        """
        return await self._surviving(tasks, listener)

    async def interrupt(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one short batch inside one that runs; where none does any more, as `run`.

        It comes before other batches then, and if its worker dies.
        """
        return await self._surviving(tasks, listener, short=True)

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

    async def _surviving(self, tasks: Sequence[Task], listener: Listener, *, short: bool = False) -> list[Answer]:
        """What an attempt at these tasks answers; if its worker dies, they run again."""
        try:
            if short and self._busy:
                return await self._attempt_inside(min(self._busy, key=self._inside.__getitem__), tasks, listener)
            return await self._attempt(tasks, listener, short=short)
        except _LostError as lost:
            if self._ended.is_set():
                raise _gone() from None
            _log.warning("running the tasks of a lost batch again: %d (%s)", len(tasks), lost.error.message)
            if len(tasks) == 1:
                return [await self._alone(tasks[0], listener, _Deaths().after(lost), short=short)]
        middle = (len(tasks) + 1) // 2
        halves = range(middle), range(middle, len(tasks))
        again = partial(self._again, tasks, listener=listener, short=short)
        if short:  # the second is not to wait for what gets the worker after the first
            parts = await asyncio.gather(*map(again, halves))
        else:
            parts = [await again(places) for places in halves]
        return [*chain.from_iterable(parts)]

    async def _attempt(self, tasks: Sequence[Task], listener: Listener, *, short: bool) -> list[Answer]:
        """Raises _LostError where the worker dies, UnavailableError where none will come back."""
        supervised, worker = await self._next_idle(short=short)
        self._busy.add(worker)
        try:
            answers = await _run(worker, tasks, listener)
        finally:
            self._busy.discard(worker)
        # After a death or a cancellation it is not idle again: the one has ended, the other one still computes.
        supervised.restarts.worked()
        if worker.is_live:
            self._idle.put((supervised, worker))
        return answers

    async def _attempt_inside(self, worker: ProcessWorker, tasks: Sequence[Task], listener: Listener) -> list[Answer]:
        """The same at a busy worker's next checkpoint."""
        self._inside[worker] += 1
        try:
            return await _run(worker, tasks, listener)
        finally:
            self._inside[worker] -= 1
            self._inside += Counter()  # drops the workers that have none

    async def _again(
        self, tasks: Sequence[Task], places: Sequence[int], listener: Listener, *, short: bool
    ) -> list[Answer]:
        """Run a part of a lost batch again: what is still wanted together, and one by one where that is lost too."""
        answers: dict[int, Answer] = {}
        wanted = [place for place in places if listener.wanted(place)]
        if len(wanted) > 1:
            part = [tasks[place] for place in wanted]
            with suppress(_LostError, UnavailableError):
                found = await self._attempt(part, _Part(listener, wanted), short=short)
                answers = dict(zip(wanted, found, strict=True))
        for place in places:
            if place not in answers:
                answers[place] = await self._alone(tasks[place], _Part(listener, [place]), _Deaths(), short=short)
        return [answers[place] for place in places]

    async def _alone(self, task: Task, listener: Listener, deaths: _Deaths, *, short: bool) -> Answer:
        """Run one task until it is answered, nobody wants it, or too many workers have died of it."""
        while listener.wanted(0):
            try:
                [answer] = await self._attempt([task], listener, short=short)
                return answer
            except _LostError as lost:
                deaths = deaths.after(lost)
                if deaths.are_too_many:
                    return _deadly(lost.error, deaths.own + deaths.kills)
                if self._ended.is_set():
                    return _gone()
            except UnavailableError as error:
                return error
        return _abandoned()

    async def _next_idle(self, *, short: bool) -> tuple[SupervisedWorker, ProcessWorker]:
        try:
            while True:
                idle = await self._idle.get(short=short)
                if idle[1].is_live:
                    return idle
        except NobodyComesError:
            raise _gone() from None

    async def _supervise(self, supervised: SupervisedWorker) -> None:
        try:
            await supervised.supervise(self._on_change)
        except Exception:
            _log.exception("the supervision of a worker failed")
        self._ended.set()
        self._idle.end()
        self._announce()

    def _on_change(self, supervised: SupervisedWorker) -> None:
        idle = (supervised, supervised.worker)
        if supervised.worker.is_live:
            self._idle.put(idle)
        else:
            self._idle.discard(idle)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _LostError(Exception):
    """A worker died while it had a batch, which `is_blamed` where the worker was at work on it.

    `is_kill`: somebody killed the worker from outside.
    """

    def __init__(self, error: UnavailableError, *, is_blamed: bool, is_kill: bool) -> None:
        super().__init__(error)
        self.error = error
        self.is_blamed = is_blamed
        self.is_kill = is_kill


@dataclass(frozen=True, slots=True)
class _Deaths:
    """Of workers that ran a request alone: by themselves, and by somebody who killed them."""

    own: int = 0
    kills: int = 0

    def after(self, lost: _LostError) -> _Deaths:
        """With one more, if the request is to blame for it at all."""
        kill = lost.is_blamed and lost.is_kill
        return _Deaths(self.own + (lost.is_blamed and not kill), self.kills + kill)

    @property
    def are_too_many(self) -> bool:
        """Whether they are too many to be chance."""
        return self.own >= _MOST_DEATHS or self.kills >= _MOST_KILLS


async def _run(worker: ProcessWorker, tasks: Sequence[Task], listener: Listener) -> list[Answer]:
    """Raises _LostError where the worker dies."""
    try:
        return await worker.run(tasks, listener)
    except UnavailableError as error:
        is_blamed = worker.was_at_work_on(tasks)
        raise _LostError(error, is_blamed=is_blamed, is_kill=worker.was_killed_from_outside) from None


class _Part(Listener):
    """Passes on what concerns some tasks of a batch, which run again by themselves."""

    def __init__(self, listener: Listener, places: Sequence[int]) -> None:
        self._listener = listener
        self._places = places

    def wanted(self, place: int) -> bool:
        return self._listener.wanted(self._places[place])

    def begins(self, stop: Callable[[], None]) -> None:
        self._listener.begins(stop)

    def reported(self, report: BatchReport) -> None:
        self._listener.reported(report)


def worker_pool(
    config: ServerConfig, factories: Sequence[EngineFactory], again: Sequence[EngineFactory] | None = None
) -> WorkerPool:
    """One worker process for each factory, as the settings say; `again` are those for processes after the first."""
    workers = []
    for index, (factory, later) in enumerate(zip(factories, again or factories, strict=True)):
        name = f"worker-{index}"
        spawn = partial(
            ProcessWorker,
            name=name,
            log_level=config.log_level,
            load_timeout=config.load_timeout,
            log_format=config.log_format,
            heartbeat_timeout=config.heartbeat_timeout,
            batch_timeout=config.batch_timeout,
        )
        restarts = Restarts(config.restarts, config.restart_window)
        spawns = partial(spawn, factory), partial(spawn, later)
        workers.append(SupervisedWorker(*spawns, name, restarts, spare=config.spare_worker))
    return WorkerPool(workers)


def _gone() -> UnavailableError:
    return UnavailableError(
        "the workers died too often and the server ends; try again", reason="WORKER_GONE", retry_after=_RETRY_SECONDS
    )


def _abandoned() -> UnavailableError:
    return UnavailableError("the worker died, and nobody waits for this request any more", reason="WORKER_DIED")


def _deadly(error: UnavailableError, deaths: int) -> UnavailableError:
    """No time to try again after is given: a request that kills workers must not be sent again by itself."""
    times = "twice" if deaths == _MOST_DEATHS else f"{deaths} times"
    return UnavailableError(
        f"the worker died {times} while it ran this request alone; it is not run again ({error.message})",
        reason="WORKER_DIED",
    )
