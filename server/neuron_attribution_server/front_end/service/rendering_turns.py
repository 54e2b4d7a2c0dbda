"""Whose conversation is rendered next: tenants in turn, in a few threads, one of which no named tenant may fill."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS, current_tenant
from neuron_attribution_server.front_end.conversations.renderer import PROCESSES

Value = TypeVar("Value")
Turn = asyncio.Future[None]

WAITING = 256
"""Conversations that may wait."""
WAIT_SECONDS = 0.75
"""How long one may wait."""
_RETRY_SECONDS = 1.0


class RenderingTurns:
    """Turns of conversations, each in a thread until it ends: a caller that goes away does not end what it began."""

    def __init__(self, tenant_share: float) -> None:
        self._share = max(1, int(WAITING * tenant_share))
        self._threads = ThreadPoolExecutor(max_workers=PROCESSES, thread_name_prefix="conversations")
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()

    async def run(self, work: Callable[[], Value]) -> Value:
        """What `work` gives, when it is the current tenant's turn.

        Raises ResourceExhaustedError where others take too long, or too many wait.
        """
        tenant = current_tenant.get()
        await self._turn(tenant)
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        running.add_done_callback(lambda _: self._end(tenant))
        return await asyncio.shield(running)

    async def _turn(self, tenant: str) -> None:
        self._check_room(tenant)
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._begin()
        timer = loop.call_later(WAIT_SECONDS, partial(_refuse, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._end(tenant)
            raise
        finally:
            timer.cancel()
            self._forget(tenant, turn)

    def _check_room(self, tenant: str) -> None:
        mine, every = len(self._waiting.get(tenant, ())), sum(map(len, self._waiting.values()))
        if every >= WAITING:
            raise _full(f"{every} conversations wait", "QUEUE_FULL")
        if tenant != ANONYMOUS and mine >= self._share:
            raise _full(f"{mine} conversations of yours wait", "TENANT_QUEUE_FULL")

    def _begin(self) -> None:
        """Give turns for as long as there are threads and somebody who may have one."""
        while self._running.total() < PROCESSES and (tenant := self._next()) is not None:
            turn = self._waiting[tenant].popleft()
            self._waiting.move_to_end(tenant)
            if not turn.done():  # refused, or its caller gone, and not forgotten yet
                self._running[tenant] += 1
                turn.set_result(None)

    def _next(self) -> str | None:
        """Anonymous callers, who cannot be told apart, may fill every thread."""
        return next(
            (
                tenant
                for tenant, turns in self._waiting.items()
                if turns and (tenant == ANONYMOUS or self._running[tenant] < PROCESSES - 1)
            ),
            None,
        )

    def _end(self, tenant: str) -> None:
        self._running[tenant] -= 1
        self._running += Counter()  # drops the tenants that have none
        self._begin()

    def _forget(self, tenant: str, turn: Turn) -> None:
        turns = self._waiting.get(tenant)
        if turns is not None:
            with suppress(ValueError):
                turns.remove(turn)
            if not turns:
                del self._waiting[tenant]


def _refuse(turn: Turn) -> None:
    if not turn.done():
        turn.set_exception(_full("other conversations are being rendered", "QUEUE_FULL"))


def _full(what: str, reason: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{what}; try again in {_RETRY_SECONDS:g} second", reason=reason, retry_after=_RETRY_SECONDS
    )
