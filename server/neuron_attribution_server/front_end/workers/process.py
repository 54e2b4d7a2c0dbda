"""A worker process, seen from the front end: batches go out through a pipe, and outcomes come back."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import pickle
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from neuron_attribution.errors import UnavailableError

from neuron_attribution_server.front_end.workers.child import main
from neuron_attribution_server.front_end.workers.deaths import Death, killed_for_memory
from neuron_attribution_server.front_end.workers.interface import NOBODY, Listener, ModelLoadError, check_warm_up
from neuron_attribution_server.front_end.workers.watchdog import Watchdog
from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.running import WARM_UP, EngineFactory
from neuron_attribution_server.tasks.tasks import Task
from neuron_attribution_server.tasks.wire.messages import (
    Batch,
    Begun,
    Computed,
    Drop,
    Failed,
    Finished,
    FromWorker,
    Load,
    Prepared,
    Ready,
)
from neuron_attribution_server.tasks.wire.pipe import FrontEnd

EXIT_SECONDS = 5.0
"""How long a process may take to end when told to, and again once it is killed."""
_REAP_SECONDS = 0.05
_REPORT_SECONDS = 0.005
"""How long a batch's report waits, so that the answers leave first."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    """A batch that was sent: what waits for it, and what hears of it."""

    tasks: Sequence[Task]
    answer: asyncio.Future[Finished]
    listener: Listener


class ProcessWorker:
    """Runs an engine in a process of its own. `factory` is called there, so it must be picklable.

    A process that loads for longer than `load_timeout` seconds, shows no sign of life for `heartbeat_timeout` seconds,
    or runs one batch for longer than `batch_timeout` seconds, is killed.
    """

    capacity = 1

    def __init__(
        self,
        factory: EngineFactory,
        *,
        name: str = "worker",
        log_level: str = "info",
        load_timeout: float = 3600.0,
        log_format: str = "text",
        heartbeat_timeout: float = 30.0,
        batch_timeout: float = 300.0,
    ) -> None:
        self._name = name
        self._arguments = (factory, log_level, log_format)
        self._process: BaseProcess | None = None
        self._lifeline: Connection | None = None
        self._pipe: FrontEnd | None = None
        self._loaded: asyncio.Future[ModelFacts] | None = None
        self._batches: dict[int, _Running] = {}
        self._begun: list[int] = []
        self._sent = 0
        self._watchdog = Watchdog(load_timeout, heartbeat_timeout, batch_timeout)
        self._watching: asyncio.Task[None] | None = None
        self._live = False
        self._ended = asyncio.Event()
        self._hang = ""
        self.pid: int | None = None
        """The process's id, once started."""
        self.prepared = 0.0
        """The part that is done of what the process prepares for requests to come."""
        self._killed_before: int | None = None
        self.cause = "never started"
        """How the process ended, for people."""
        self.was_killed_from_outside = False
        """Whether it ended by nothing that it ran."""

    def was_at_work_on(self, tasks: Sequence[Task]) -> bool:
        """Whether the process was at work on this batch when it ended: the last one that it began and had not done.

        What it had read and not begun, it may have died of as well, if it had begun nothing.
        """
        if self._begun:
            return self._batches[self._begun[-1]].tasks is tasks
        was_read = self._pipe is not None and not self._pipe.undelivered
        return was_read and any(running.tasks is tasks for running in self._batches.values())

    @property
    def is_live(self) -> bool:
        """Whether the process is loaded, warm and has not ended."""
        return self._live and not self._ended.is_set()

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._ended.is_set()

    async def prepare(self) -> None:
        """Start the process. It does what needs no model, and waits to be told more. Raises OSError."""
        await self._spawn()

    async def start(self) -> ModelFacts:
        """Start the process, if it is not prepared; wait until it has loaded the model and run a first task."""
        try:
            if self._pipe is None:
                await self._spawn()
        except OSError as error:
            raise ModelLoadError(f"its process cannot be started: {error}") from None
        if self._ended.is_set():
            raise ModelLoadError(f"its process {self.cause}")
        assert self._pipe is not None
        self._pipe.send(Load())
        self._loaded = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch())
        try:
            facts = await self._loaded
            self._loaded = None  # megabytes, which whoever asked has now
            self._watchdog.loaded()
            check_warm_up(await self.run([WARM_UP]))
        except UnavailableError as error:
            raise ModelLoadError(f"loading the model failed: {error.message}") from None
        self._live = True
        return facts

    async def ready(self) -> None:
        """Return at once: nothing comes after a process that ended."""

    async def run(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one batch; while another one runs, at that one's next checkpoint."""
        if self._ended.is_set() or self._pipe is None:
            raise self._death()
        self._sent += 1
        number = self._sent
        answer: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        if not self._batches:
            self._watchdog.batch_begins()
        self._batches[number] = _Running(tasks, answer, listener)
        self._pipe.send(Batch(number, tuple(tasks)))
        listener.begins(partial(self._drop, number))
        message = await answer
        asyncio.get_running_loop().call_later(_REPORT_SECONDS, _report, listener, message.report)
        return message.outcomes

    async def changed(self) -> None:
        """Wait until the process ends; nothing changes after that."""
        await (asyncio.Event() if self._ended.is_set() else self._ended).wait()

    async def ended(self) -> None:
        """Wait until the process has ended."""
        await self._ended.wait()

    async def stop(self) -> None:
        """Tell the process to end; kill it if it does not."""
        if self._watching is not None:
            self._watching.cancel()
        if self._lifeline is not None:
            self._lifeline.close()
        if self._process is None:
            return
        if self._pipe is not None:
            self._pipe.finish()
        if not await self._ends():
            _log.warning("the worker process did not end; killing it")
            self._kill()
            await self._ends()
        if self._pipe is not None:
            self._pipe.close()

    async def _spawn(self) -> None:
        """Spawned, never forked: gRPC and CUDA do not survive a fork. What fails leaves nothing behind."""
        context = multiprocessing.get_context("spawn")
        with ExitStack() as worker_ends, ExitStack() as ends:  # the process has its own of the former
            end, worker_end = socket.socketpair()
            worker_ends.enter_context(worker_end)
            ends.enter_context(end)
            worker_lifeline, lifeline = context.Pipe(duplex=False)
            worker_ends.enter_context(worker_lifeline)
            ends.enter_context(lifeline)
            pipe = FrontEnd(self._received, self._unreadable, self._hung_up)
            await asyncio.get_running_loop().create_connection(lambda: pipe, sock=end)
            ends.callback(pipe.close)
            arguments = (worker_end, worker_lifeline, *self._arguments)
            process = context.Process(target=main, args=arguments, name=self._name, daemon=True)
            self._killed_before = killed_for_memory()
            process.start()  # last: a process cannot be taken back
            ends.pop_all()
        self._process, self._pipe, self._lifeline, self.pid = process, pipe, lifeline, process.pid

    async def _watch(self) -> None:
        """Kill the process when it is overdue."""
        why = await self._watchdog.overdue()
        _log.error("worker process %s hangs: %s; killing it", self.pid, why)
        self._hang = f"hung and was killed: {why}"
        self._kill()
        if not await self._ends():
            _log.error("worker process %s cannot be killed; going on without it", self.pid)
            self._died(self._hang)

    async def _ends(self) -> bool:
        """Whether the process ends soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):  # wait_for would swallow a cancellation at the last moment
                await self._ended.wait()
        return self._ended.is_set()

    def _drop(self, number: int) -> None:
        """Tell the process that nobody waits for a batch any more."""
        if number in self._batches and self._pipe is not None:
            self._pipe.send(Drop(number))

    def _received(self, message: FromWorker) -> None:
        self._watchdog.beat()
        match message:
            case Ready(facts):
                self._has_loaded(facts)
            case Failed(why):
                self._has_loaded(ModelLoadError(why))
            case Begun(number):
                if self._begun:  # else its time counts since it was sent, or the one before it ended
                    self._watchdog.batch_begins()
                self._begun.append(number)
            case Prepared(done, parts):
                self.prepared = done / parts if parts else 1.0
            case Computed(number):
                self._batches[number].listener.computed()
            case Finished(number):
                self._finished(number, message)

    def _has_loaded(self, outcome: ModelFacts | ModelLoadError) -> None:
        if self._loaded is None or self._loaded.done():
            return
        if isinstance(outcome, ModelLoadError):
            self._loaded.set_exception(outcome)
        else:
            self._loaded.set_result(outcome)

    def _finished(self, number: int, message: Finished) -> None:
        self._watchdog.batch_ends()
        self._begun.remove(number)
        answer = self._batches.pop(number).answer
        if self._batches and not self._watchdog.counts_a_batch:  # it came too late to begin inside this one
            self._watchdog.batch_begins()
        if not answer.done():
            answer.set_result(message)

    def _unreadable(self, error: Exception) -> None:
        _log.error("an answer of the worker process cannot be read; killing it", exc_info=error)
        self._kill()

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def _hung_up(self) -> None:
        """No message comes any more: the process has ended, or is about to. Or it could not be started."""
        self._live = False
        if self._process is None:
            return
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._ending, self._process)

    def _ending(self, process: BaseProcess) -> None:
        """Its files are closed, but what else it has, a GPU above all, it may let go of for a while yet."""
        asyncio.get_running_loop().remove_reader(process.sentinel)
        self._reap(process)

    def _reap(self, process: BaseProcess) -> None:
        process.join(0)
        if process.exitcode is None:
            asyncio.get_running_loop().call_later(_REAP_SECONDS, self._reap, process)
            return
        death = Death(process.exitcode, self._killed_before)
        process.close()
        self.was_killed_from_outside = death.is_from_outside and not self._hang
        self._died(death.describe())

    def _died(self, cause: str) -> None:
        self.cause = self._hang or cause
        self._ended.set()
        if self._watching is not None:
            self._watching.cancel()
        waiting = [each.answer for each in self._batches.values()]
        for future in (self._loaded, *waiting):
            if future is not None and not future.done():
                future.set_exception(self._death())

    def _death(self) -> UnavailableError:
        return UnavailableError(f"the worker process {self.cause}; try again later", reason="WORKER_DIED")


def _report(listener: Listener, report: bytes) -> None:
    listener.reported(pickle.loads(report))
