"""Workers that have nothing to do, for whoever waits for one: what is short goes first."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Idle = TypeVar("Idle")


class NobodyComesError(Exception):
    """No worker will be idle any more."""


class IdleWorkers(Generic[Idle]):
    """Use it from the event loop only."""

    def __init__(self) -> None:
        self._idle: deque[Idle] = deque()
        self._short_waiting = 0
        self._changed = asyncio.Event()
        self._has_ended = False

    def put(self, worker: Idle) -> None:
        """A worker has nothing to do."""
        self._idle.append(worker)
        self._announce()

    def discard(self, worker: Idle) -> None:
        """A worker that had nothing to do, perhaps, is no more: nothing of it is kept."""
        if worker in self._idle:
            self._idle.remove(worker)

    def end(self) -> None:
        """None will come back: whoever waits hears it."""
        self._has_ended = True
        self._announce()

    async def get(self, *, short: bool = False) -> Idle:
        """Wait for a worker; what is not short lets what is go first. Raises NobodyComesError."""
        self._short_waiting += short
        try:
            while not self._has_ended:
                if self._idle and (short or not self._short_waiting):
                    return self._idle.popleft()
                await self._changed.wait()
            raise NobodyComesError
        finally:
            self._short_waiting -= short
            self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
