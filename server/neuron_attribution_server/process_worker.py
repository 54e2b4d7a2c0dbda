"""A worker process, seen from the front end: batches go out through a pipe, a small thread brings outcomes back."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler

from neuron_attribution.errors import UnavailableError

from neuron_attribution_server.reports import hand_over
from neuron_attribution_server.tasks import Answer, ModelFacts, Task
from neuron_attribution_server.watchdog import Watchdog
from neuron_attribution_server.worker import WARM_UP, EngineFactory, ModelLoadError, Wanted, always, check_warm_up
from neuron_attribution_server.worker_process import Beat, Failed, Finished, Message, Ready, main

EXIT_SECONDS = 5.0
"""How long a process may take to end when told to, and again once it is killed."""
_SHORT_MESSAGE = 16 * 1024

_log = logging.getLogger(__name__)


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
        # Spawned, never forked: gRPC and CUDA do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, self._child_connection = context.Pipe()
        arguments = (self._child_connection, factory, log_level, log_format)
        self._process = context.Process(target=main, args=arguments, name=name, daemon=True)
        self._reader: threading.Thread | None = None
        self._answer: asyncio.Future[Message] | None = None
        self._watchdog = Watchdog(load_timeout, heartbeat_timeout, batch_timeout)
        self._watching: asyncio.Task[None] | None = None
        self._live = False
        self._ended = asyncio.Event()
        self._hang = ""
        self.pid: int | None = None
        """The process's id, once started."""
        self.cause = "never started"
        """How the process ended, for people."""

    @property
    def is_live(self) -> bool:
        """Whether the process is loaded, warm and has not ended."""
        return self._live and not self._ended.is_set()

    async def start(self) -> ModelFacts:
        """Start the process and wait until it has loaded the model and run a first task."""
        self._process.start()
        self.pid = self._process.pid
        self._child_connection.close()  # else the pipe would not close with the child
        answer = self._expect_answer()
        loop = asyncio.get_running_loop()
        self._reader = threading.Thread(target=self._read, args=(loop,), name="worker-reader", daemon=True)
        self._reader.start()
        self._watching = asyncio.create_task(self._watch())
        try:
            facts = _facts(await answer)
            self._watchdog.loaded()
            check_warm_up(await self.run([WARM_UP]))
        except UnavailableError as error:
            raise ModelLoadError(f"loading the model failed: {error.message}") from None
        self._live = True
        return facts

    async def ready(self) -> None:
        """Return at once: nothing comes after a process that ended."""

    async def run(self, tasks: Sequence[Task], wanted: Wanted = always) -> list[Answer]:
        """Run one batch."""
        if self._ended.is_set():
            raise self._death()
        answer = self._expect_answer()
        self._watchdog.batch_begins()
        with suppress(OSError):  # the reader notices the death, too, and fails the answer
            await self._send(bytes(ForkingPickler.dumps(tuple(tasks))))
        message = await answer
        assert isinstance(message, Finished)
        hand_over(message.report)
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
        if self._reader is not None:
            await asyncio.to_thread(self._stop, self._reader)

    async def _watch(self) -> None:
        """Kill the process when it is overdue."""
        why = await self._watchdog.overdue()
        _log.error("worker process %s hangs: %s; killing it", self.pid, why)
        self._hang = f"hung and was killed: {why}"
        self._process.kill()
        try:
            await asyncio.wait_for(self._ended.wait(), EXIT_SECONDS)
        except TimeoutError:
            _log.error("worker process %s cannot be killed; going on without it", self.pid)
            self._died(self._hang)

    async def _send(self, message: bytes) -> None:
        """What fits into the pipe's buffer is gone at once; a thread would only take longer."""
        if len(message) <= _SHORT_MESSAGE:
            self._connection.send_bytes(message)
        else:
            await asyncio.to_thread(self._connection.send_bytes, message)

    def _stop(self, reader: threading.Thread) -> None:
        with suppress(OSError):  # it may have ended already
            self._connection.send(None)
        # The reader ends after the process. It alone waits for it: two waiting threads steal the exit code from
        # each other.
        reader.join(EXIT_SECONDS)
        if reader.is_alive():
            _log.warning("the worker process did not end; killing it")
            self._process.kill()
            reader.join(EXIT_SECONDS)
        if not reader.is_alive():
            self._connection.close()
            self._process.close()

    def _expect_answer(self) -> asyncio.Future[Message]:
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run in the reader thread: bring each message to the event loop, and at last the news that there are none."""
        try:
            while True:
                _tell(loop, self._received, self._connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            _log.exception("an answer of the worker process cannot be read; killing it")
            self._process.kill()
        self._process.join()
        _tell(loop, self._died, describe_exit(self._process.exitcode))

    def _received(self, message: Message) -> None:
        self._watchdog.beat()
        if isinstance(message, Beat):
            return
        self._watchdog.batch_ends()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def _died(self, cause: str) -> None:
        self.cause = self._hang or cause
        self._ended.set()
        if self._watching is not None:
            self._watching.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._death())

    def _death(self) -> UnavailableError:
        return UnavailableError(f"the worker process {self.cause}; try again later", reason="WORKER_DIED")


def describe_exit(code: int | None) -> str:
    """What a process's exit code says, in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _facts(message: Message) -> ModelFacts:
    if isinstance(message, Ready):
        return message.facts
    raise ModelLoadError(message.message if isinstance(message, Failed) else "the worker sent no facts")


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(callback, *arguments)
