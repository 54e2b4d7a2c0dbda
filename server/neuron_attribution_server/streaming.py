"""A stream of attributions: items are answered as they finish, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import TypeVar

from neuron_attribution import convert
from neuron_attribution.errors import (
    DeadlineExceededError,
    NeuronAttributionError,
    ResourceExhaustedError,
    UnavailableError,
)
from neuron_attribution.status import to_item_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

Value = TypeVar("Value")


class ItemStream:
    """Answers the items of one stream, at most `window` of them at a time: while it is full, nothing more is read.

    `answer` gives an item's answers, serialized, or raises; `public` makes of that an error that callers may see.
    """

    def __init__(
        self,
        window: int,
        answer: Callable[[messages.AttributeStreamRequest], Awaitable[Sequence[bytes]]],
        public: Callable[[Exception], NeuronAttributionError],
    ) -> None:
        self._room = asyncio.Semaphore(window)
        self._answer = answer
        self._public = public
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def run(
        self,
        items: AsyncIterable[messages.AttributeStreamRequest],
        write: Callable[[messages.AttributeStreamResponse | bytes], Awaitable[None]],
    ) -> None:
        """Answer all items. Where reading or writing fails, or this is cancelled, so is every item under way."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._room.acquire()
                async for item in items:
                    tasks.create_task(self._handle(item, write))
                    await self._room.acquire()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _handle(
        self,
        item: messages.AttributeStreamRequest,
        write: Callable[[messages.AttributeStreamResponse | bytes], Awaitable[None]],
    ) -> None:
        for outcome in await self._outcomes(item):
            async with self._writing:
                await write(outcome)
        self._room.release()  # not before: a caller that does not read its answers is sent no more of them

    async def _outcomes(
        self, item: messages.AttributeStreamRequest
    ) -> Sequence[messages.AttributeStreamResponse | bytes]:
        try:
            return await self._answer(item)
        except DeadlineExceededError:  # it is the whole stream's
            raise
        except Exception as error:
            return [messages.AttributeStreamResponse(key=item.key, error=to_item_error(self._public(error)))]


def token_by_token(key: str, serialized: bytes) -> list[bytes]:
    """One answer for each explanation, with all that they share; the only one where there is none to part."""
    response = messages.AttributeResponse.FromString(serialized)
    answers = [
        messages.AttributeResponse(
            model=response.model, tokens=response.tokens, explanations=[explanation], timings=response.timings
        ).SerializeToString()
        for explanation in response.explanations
    ] or [serialized]
    return [
        convert.stream_answer(key, answer, remaining)
        for remaining, answer in zip(reversed(range(len(answers))), answers, strict=True)
    ]


async def patiently(attempt: Callable[[], Awaitable[Value]], deadline: float | None) -> Value:
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
