"""A worker process, seen from the front end: batches go out through a pipe, a small thread brings outcomes back."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler

from neuron_attribution.errors import UnavailableError

from neuron_attribution_server.tasks import Answer, ModelFacts, Task
from neuron_attribution_server.worker import EngineFactory, ModelLoadError
from neuron_attribution_server.worker_process import Failed, Finished, Message, Ready, main

_EXIT_SECONDS = 5.0
_SHORT_MESSAGE = 16 * 1024

_log = logging.getLogger(__name__)


class ProcessWorker:
    """Runs an engine in a process of its own. `factory` is called there, so it must be picklable."""

    def __init__(self, factory: EngineFactory, *, log_level: str = "info") -> None:
        # Spawned, never forked: gRPC and CUDA do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, self._child_connection = context.Pipe()
        arguments = (self._child_connection, factory, log_level)
        self._process = context.Process(target=main, args=arguments, name="worker", daemon=True)
        self._reader: threading.Thread | None = None
        self._answer: asyncio.Future[Message] | None = None
        self._ended = asyncio.Event()

    @property
    def capacity(self) -> int:
        """Batches that can run at the same time."""
        return 1

    async def start(self) -> ModelFacts:
        """Start the process and wait until it has loaded the model."""
        self._process.start()
        self._child_connection.close()  # else the pipe would not close with the child
        answer = self._expect_answer()
        loop = asyncio.get_running_loop()
        self._reader = threading.Thread(target=self._read, args=(loop,), name="worker-reader", daemon=True)
        self._reader.start()
        try:
            message = await answer
        except UnavailableError as error:
            raise ModelLoadError(f"loading the model failed: {error.message}") from None
        if not isinstance(message, Ready):
            raise ModelLoadError(message.message if isinstance(message, Failed) else "the worker sent no facts")
        return message.facts

    async def run(self, tasks: Sequence[Task]) -> list[Answer]:
        """Run one batch."""
        if self._ended.is_set():
            raise self._death()
        answer = self._expect_answer()
        with suppress(OSError):  # the reader notices the death, too, and fails the answer
            await self._send(bytes(ForkingPickler.dumps(tuple(tasks))))
        message = await answer
        assert isinstance(message, Finished)
        return message.outcomes

    async def ended(self) -> None:
        """Wait until the process has ended."""
        await self._ended.wait()

    async def stop(self) -> None:
        """Tell the process to end; kill it if it does not."""
        if self._process.pid is not None:
            await asyncio.to_thread(self._stop)

    async def _send(self, message: bytes) -> None:
        """What fits into the pipe's buffer is gone at once; a thread would only take longer."""
        if len(message) <= _SHORT_MESSAGE:
            self._connection.send_bytes(message)
        else:
            await asyncio.to_thread(self._connection.send_bytes, message)

    def _stop(self) -> None:
        with suppress(OSError):  # it may have ended already
            self._connection.send(None)
        # The reader ends after the process. It alone waits for it: two waiting threads steal the exit code from
        # each other.
        if self._reader is not None:
            self._reader.join(_EXIT_SECONDS)
            if self._reader.is_alive():
                _log.warning("the worker process did not end; killing it")
                self._process.kill()
                self._reader.join()
        self._connection.close()

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
        _tell(loop, self._died)

    def _received(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def _died(self) -> None:
        self._ended.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._death())

    def _death(self) -> UnavailableError:
        code = self._process.exitcode
        return UnavailableError(
            f"the worker process ended with exit code {code}; try again later", reason="WORKER_DIED"
        )


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(callback, *arguments)
