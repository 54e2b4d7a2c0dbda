"""A stream of attributions: items are answered as they finish, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from neuron_attribution.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

from neuron_attribution_server.front_end.transfer.exchange import Exchange, Received

Value = TypeVar("Value")
Item = Received[messages.AttributeStreamRequest]
Answer = Callable[[], bytes]
"""An answer that is built when it is its turn to be sent, serialized."""


class ItemStream:
    """Answers the items of one stream, at most `window` of them at a time: while it is full, nothing more is read."""

    def __init__(self, window: int, answers: Callable[[Item], AsyncGenerator[Answer, None]]) -> None:
        self._room = asyncio.Semaphore(window)
        self._answers = answers
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def run(self, items: AsyncIterator[Item], exchange: Exchange) -> None:
        """Answer all items. Where reading or writing fails, or this is cancelled, so is every item under way."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._room.acquire()
                async for item in items:
                    tasks.create_task(self._handle(item, exchange))
                    await self._room.acquire()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _handle(self, item: Item, exchange: Exchange) -> None:
        with exchange.item(item):
            async with aclosing(self._answers(item)) as answers:
                async for answer in answers:
                    async with self._writing:
                        await exchange.write(answer())
        self._room.release()  # not before: a caller that does not read its answers is sent no more of them


async def retry(attempt: Callable[[], Awaitable[Value]], deadline: float | None) -> Value:
    """Attempt again for as long as there is no room or no worker, after the times the refusals name.

    Raises DeadlineExceededError at `deadline`, on the event loop's clock, and whatever else the attempt raises.
    """
    clock = asyncio.get_running_loop().time
    while True:
        try:
            return await attempt()
        except (ResourceExhaustedError, UnavailableError) as error:
            if error.retry_after is None:  # waiting cannot help: it is too large, or workers die of it
                raise
            pause = error.retry_after
        if deadline is not None and clock() + pause >= deadline:
            raise DeadlineExceededError("the time allowed ran out before the queue had room")
        await asyncio.sleep(pause)
