"""One worker that is started again when it dies, with longer and longer pauses, until that has no use any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from neuron_attribution_server.front_end.workers.interface import ModelLoadError
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.front_end.workers.restarts import MOST_BACKOFF, Restarts
from neuron_attribution_server.tasks.model_facts import ModelFacts

_log = logging.getLogger(__name__)


class SupervisedWorker:
    """A succession of worker processes, one at a time. `on_change` is called when one goes live, and when it dies."""

    def __init__(
        self,
        spawn: Callable[[], ProcessWorker],
        spawn_again: Callable[[], ProcessWorker],
        name: str,
        restarts: Restarts,
        *,
        spare: bool = False,
    ) -> None:
        """With a `spare`, a process that has all but the model is kept ready for the next restart."""
        self._spawn_again = spawn_again
        self._name = name
        self._worker = spawn()
        self._facts: ModelFacts | None = None
        self.restarts = restarts
        self._keeps_spare = spare
        self._spare: ProcessWorker | None = None
        self._preparing: asyncio.Task[None] | None = None

    @property
    def worker(self) -> ProcessWorker:
        """The present worker process, live or not."""
        return self._worker

    @property
    def device(self) -> str:
        """Where it runs; empty until the model is loaded."""
        return self._facts.device if self._facts is not None else ""

    async def start(self) -> ModelFacts:
        """Start the first process. Raises ModelLoadError: what cannot be loaded at all is not tried again."""
        self._facts = await self._worker.start()
        return self._facts

    async def supervise(self, on_change: Callable[[SupervisedWorker], None]) -> None:
        """Restart the worker whenever it dies; return when it has died too often."""
        while True:
            on_change(self)
            self._keep_spare()
            await self._worker.ended()
            on_change(self)
            if not await self._restart(self._worker.cause):
                return

    async def stop(self) -> None:
        """End the present process, and the spare one."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        if self._spare is not None:
            await self._spare.stop()
        await self._worker.stop()

    def _keep_spare(self) -> None:
        if self._keeps_spare and (self._preparing is None or self._preparing.done()):
            self._preparing = asyncio.create_task(self._prepare_spare())

    async def _prepare_spare(self) -> None:
        """Have a spare process. Where none can be started now, one may be later."""
        while self._spare is None or self._spare.has_ended:
            spare = self._spawn_again()
            try:
                await spare.prepare()
                self._spare = spare
            except OSError as error:
                _log.warning("%s has no spare process: %s", self._name, error)
                await asyncio.sleep(MOST_BACKOFF)

    async def _next(self) -> ProcessWorker:
        """The spare process, if there is one."""
        spare, self._spare = self._spare, None
        if spare is None:
            return self._spawn_again()
        if spare.has_ended:
            await spare.stop()
            return self._spawn_again()
        return spare

    async def _restart(self, cause: str) -> bool:
        """Try until a process is live; false where there were too many deaths."""
        clock = asyncio.get_running_loop().time
        while True:
            died, pid = clock(), self._worker.pid
            await self._worker.stop()
            pause = self.restarts.died(died)
            if pause is None:
                self._log_death(logging.ERROR, pid, cause, "more than are allowed: giving up")
                return False
            self._log_death(logging.WARNING, pid, cause, f"restarting in {pause:g} seconds")
            await asyncio.sleep(pause)
            self._worker = await self._next()
            try:
                await self._load_again()
            except ModelLoadError as error:
                cause = f"could not be restarted: {error}"
                continue
            _log.warning("%s is back as process %s after %.1f seconds", self._name, self._worker.pid, clock() - died)
            return True

    async def _load_again(self) -> None:
        facts = await self._worker.start()
        if self._facts is not None and facts.identity != self._facts.identity:
            raise ModelLoadError(
                f"the model is now {facts.identity}, but {self._facts.identity} is served; "
                "restart the server to serve it"
            )

    def _log_death(self, level: int, pid: int | None, cause: str, next_step: str) -> None:
        restarts = self.restarts
        process = "no process" if pid is None else f"process {pid}"
        _log.log(
            level,
            "%s (%s) %s; deaths within %g seconds: %d, allowed: %d; %s",
            *(self._name, process, cause, restarts.window, restarts.recent, restarts.allowed, next_step),
        )
