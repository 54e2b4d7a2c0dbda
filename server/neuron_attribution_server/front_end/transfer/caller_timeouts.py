"""How long a caller may take, and the end of its call where it takes longer.

gRPC cannot end a call whose answer is not read: the status waits behind the answer, and the answer stays in memory. It
resets the call's stream and frees everything once nothing refers to the call any more. Two tasks do: the handler's, and
the one that started it and keeps the call. Both are cancelled. Where something else refers to the call even then, its
connection is closed, with whatever else runs on it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

LARGE = 4 * 2**20
"""Bytes that may take the time allowed; more may take longer, by as much."""
_LETTING_GO_SECONDS = 2.0
_HEARING_SECONDS = 0.05
_HANDLER = "_handle_exceptions"
"""The coroutine that gRPC runs handlers in."""

_keepers: weakref.WeakKeyDictionary[asyncio.Task[Any], asyncio.Task[Any]] = weakref.WeakKeyDictionary()
_log = logging.getLogger(__name__)


def note_keepers(loop: asyncio.AbstractEventLoop) -> None:
    """From now on, note of each handler's task on this loop which task keeps its call."""
    loop.set_task_factory(_noted_task)  # type: ignore[arg-type]  # the stubs want a protocol


class Timer:
    """Calls back after some seconds, unless it is cancelled: not before this loop has heard what came meanwhile."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle = asyncio.get_running_loop().call_later(seconds, self._ask_again)

    def cancel(self) -> None:
        """Call nobody."""
        self._handle.cancel()

    def _ask_again(self) -> None:
        """A loop that was held up calls back first, and lets tasks know afterwards that they need not wait."""
        self._handle = asyncio.get_running_loop().call_later(_HEARING_SECONDS, self._callback)


class Mark(str):
    """A text that can be watched: a call has it in its trailing metadata for as long as anything refers to the call."""


@dataclass(frozen=True, slots=True)
class CallerTimeoutTerms:
    """How long any caller may take: so many seconds, after which `hang_up` closes the connection from an address.

    `noted` is called for each caller whose time is over.
    """

    seconds: float
    hang_up: Callable[[str], None]
    noted: Callable[[], None]


class CallerTimeout:
    """Of the caller of one call, whose handler runs in the current task."""

    def __init__(self, terms: CallerTimeoutTerms, context: grpc.aio.ServicerContext[Any, Any], mark: Mark) -> None:
        self._terms = terms
        self._context = context
        self._mark = weakref.ref(mark)
        self._handler = asyncio.current_task()
        self.is_lost = False
        """Whether the call was ended because its caller took too long."""

    def begin(self, size: int) -> Timer:
        """End the call where the caller does not read so many bytes in time, unless what is returned is cancelled.

        The handler's task is cancelled then.
        """
        seconds = self._terms.seconds * max(1.0, size / LARGE)
        return Timer(seconds, partial(self._end, size, seconds))

    def _end(self, size: int, seconds: float) -> None:
        self.is_lost = True
        self._terms.noted()
        _log.warning("a caller did not read %d bytes in %g seconds; its call ends", size, seconds)
        if self._handler is not None:
            keeper = _keepers.get(self._handler)
            if keeper is not None:
                keeper.cancel()
            self._handler.cancel()
        peer = self._context.peer()
        asyncio.get_running_loop().call_later(_LETTING_GO_SECONDS, _make_sure, self._mark, peer, self._terms)


def _make_sure(mark: weakref.ref[Mark], peer: str, terms: CallerTimeoutTerms) -> None:
    """Close the connection of a call that is still referred to, such as the last one, which gRPC itself remembers."""
    if mark() is not None:
        gc.collect()
    if mark() is not None:
        _log.warning("a call that was not read does not go; its connection is closed")
        terms.hang_up(peer)


def _noted_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:  # noqa: ANN401 - as asyncio's
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    if getattr(coroutine, "__name__", "") == _HANDLER:
        keeper = asyncio.current_task(loop)
        if keeper is not None:
            _keepers[task] = keeper
    return task
