"""A stream of attributions, the part both clients share: keys, outcomes, and how far requests are read ahead."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace

from neuron_attribution import convert
from neuron_attribution.convert.values import unicode_text
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError
from neuron_attribution.requests import AttributeRequest
from neuron_attribution.results import AttributeResult
from neuron_attribution.transport.calls import AttributeArguments, attribute_request
from neuron_attribution.transport.status import from_item_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

READ_AHEAD = 128
"""Requests that are sent and not yet answered: enough to keep a server's window full."""

StreamItem = str | AttributeRequest | tuple[str, str | AttributeRequest]
"""A prompt's text or a request, alone or behind its key. Without one its number is the key, from "0" on."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """The outcome of one item of a stream: its key, and either the attribution or the error it failed with.

    An item that is answered token by token has several outcomes, in order; `remaining` of them are still to come.
    """

    key: str
    result: AttributeResult | None = None
    error: NeuronAttributionError | None = None
    remaining: int = 0


def read_response(message: messages.AttributeStreamResponse) -> StreamResult:
    """The outcome of one item."""
    if message.WhichOneof("outcome") == "error":
        return StreamResult(message.key, error=from_item_error(message.error))
    result = convert.attribute_result_from_proto(message.response)
    return StreamResult(message.key, result=result, remaining=message.remaining)


class Outbox:
    """What becomes of the caller's items: messages to send, and the outcomes of those that cannot be sent."""

    def __init__(self, arguments: AttributeArguments, *, reproducible: bool, each_token: bool) -> None:
        self._plain = attribute_request("", **arguments)
        self._reproducible = reproducible
        self._each_token = each_token
        self._refused: deque[StreamResult] = deque()
        self._count = 0
        self.failure: Exception | None = None
        """What the caller's iterable raised; nothing is sent after it."""

    def write(self, item: StreamItem) -> messages.AttributeStreamRequest | None:
        """The message of the next item, or None where it is refused before it is sent."""
        key, request = item if isinstance(item, tuple) else (str(self._count), item)
        self._count += 1
        try:
            if isinstance(request, str):
                request = replace(self._plain, prompt=request)
            return messages.AttributeStreamRequest(
                key=unicode_text(key, "key"),
                request=convert.attribute_request_to_proto(request),
                reproducible=self._reproducible,
                each_token=self._each_token,
            )
        except InvalidArgumentError as error:
            self._refused.append(StreamResult(key, error=error))
            return None

    def refused(self) -> Iterator[StreamResult]:
        """Take the outcomes of the items that were refused here."""
        while self._refused:
            yield self._refused.popleft()


class RequestStream(Outbox):
    """The messages of a synchronous stream. gRPC reads them in a thread of its own."""

    def __init__(
        self, items: Iterable[StreamItem], arguments: AttributeArguments, *, reproducible: bool, each_token: bool
    ) -> None:
        super().__init__(arguments, reproducible=reproducible, each_token=each_token)
        self._items = items
        self._room = threading.Semaphore(READ_AHEAD)
        self._closed = False

    def __iter__(self) -> Iterator[messages.AttributeStreamRequest]:
        try:
            for item in self._items:
                message = self.write(item)
                if message is not None:
                    self._room.acquire()
                    yield message
                if self._closed:
                    return
        except Exception as error:
            self.failure = error

    def answered(self, response: messages.AttributeStreamResponse) -> None:
        """Make room for one more request after an item's last answer."""
        if not response.remaining:
            self._room.release()

    def close(self) -> None:
        """Let the reading thread end."""
        self._closed = True
        self._room.release()


class AsyncRequestStream(Outbox):
    """The messages of an asynchronous stream."""

    def __init__(
        self,
        items: AsyncIterable[StreamItem] | Iterable[StreamItem],
        arguments: AttributeArguments,
        *,
        reproducible: bool,
        each_token: bool,
    ) -> None:
        super().__init__(arguments, reproducible=reproducible, each_token=each_token)
        self._items = items if isinstance(items, AsyncIterable) else _asynchronous(items)
        self._room = asyncio.Semaphore(READ_AHEAD)

    async def __aiter__(self) -> AsyncIterator[messages.AttributeStreamRequest]:
        try:
            async for item in self._items:
                message = self.write(item)
                if message is not None:
                    await self._room.acquire()
                    yield message
        except Exception as error:
            self.failure = error

    def answered(self, response: messages.AttributeStreamResponse) -> None:
        """Make room for one more request after an item's last answer."""
        if not response.remaining:
            self._room.release()


async def _asynchronous(items: Iterable[StreamItem]) -> AsyncIterator[StreamItem]:
    for item in items:
        yield item
