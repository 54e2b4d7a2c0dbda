"""How the server comes to its end: what begins it, steps that may not take for ever, and what is left if they do."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

LATE_SECONDS = 9.0
"""How long the server may take to end after the drain delay and the grace."""

_log = logging.getLogger(__name__)


class LastResort(Protocol):
    """What ends the process where nothing else does."""

    def within(self, seconds: float, status: int) -> None:
        """End the process with a status if it is still there in so many seconds. Only the first time counts."""
        ...


def on_stop_signals(stop: Callable[[signal.Signals], None]) -> None:
    """Call `stop` for each signal that asks to stop. Whoever starts the server may say that a hangup does not."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)


async def side_by_side(seconds: float, steps: Mapping[str, Awaitable[object] | None]) -> None:
    """End several things, by name, at the same time; None is nothing to end.

    What takes longer than so many seconds is left as it is, and what fails is logged: what comes next must come.
    """
    await asyncio.gather(*(_end(name, seconds, work) for name, work in steps.items() if work is not None))


async def _end(name: str, seconds: float, work: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        _log.warning("ending %s took longer than %g seconds; going on without it", name, seconds)
    except Exception:
        _log.exception("ending %s failed", name)
