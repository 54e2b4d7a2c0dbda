"""One worker that is started again when it dies, with longer and longer pauses, until that has no use any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from neuron_attribution_server.front_end.workers.interface import ModelLoadError
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.front_end.workers.restarts import Restarts
from neuron_attribution_server.tasks.tasks import ModelFacts

_log = logging.getLogger(__name__)


class SupervisedWorker:
    """A succession of worker processes, one at a time. `on_change` is called when one goes live, and when it dies."""

    def __init__(
        self,
        spawn: Callable[[], ProcessWorker],
        spawn_again: Callable[[], ProcessWorker],
        name: str,
        restarts: Restarts,
    ) -> None:
        self._spawn_again = spawn_again
        self._name = name
        self._worker = spawn()
        self._facts: ModelFacts | None = None
        self.restarts = restarts

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
            await self._worker.ended()
            on_change(self)
            if not await self._restart(self._worker.cause):
                return

    async def stop(self) -> None:
        """End the present process."""
        await self._worker.stop()

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
            self._worker = self._spawn_again()
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
