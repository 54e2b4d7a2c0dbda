"""Work that takes a thread some time: tenants take turns, and what takes long does not keep others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar
from weakref import WeakValueDictionary

Result = TypeVar("Result")

AT_ONCE = 2 * 1024
"""Bytes up to which a message is converted on the event loop: that takes less time than handing it to a thread."""

QUICK = 128 * 1024
"""Bytes up to which a message is no long one; it takes a thread a tenth of a second at most."""


class Conversions:
    """Converts messages: short ones at once, the others in one thread for the quick and one for the long."""

    def __init__(self) -> None:
        self._quick = _Turns("web-quick")
        self._long = _Turns("web-long")

    async def run(self, tenant: str, size: int, work: Callable[[], Result]) -> Result:
        """Convert a message of `size` bytes. Whoever is cancelled before its turn has come costs no more."""
        if size <= AT_ONCE:
            return work()
        return await (self._quick if size <= QUICK else self._long).run(tenant, work)

    def close(self) -> None:
        """Begin no more."""
        for turns in (self._quick, self._long):
            turns.close()


class _Turns:
    """One thread. A tenant has one piece of work there at a time; its next one goes behind those of the others."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, tenant: str, work: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        await turn.acquire()
        running = self._thread.submit(work)

        def done(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(turn.release)

        # Not where this is cancelled: a thread cannot be stopped, and the turn lasts for as long as it works.
        running.add_done_callback(done)
        try:
            return await asyncio.wrap_future(running)
        finally:
            del running  # with the error of the work it would be garbage that keeps what was to be converted

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
