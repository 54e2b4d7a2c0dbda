"""One call as handlers see it: what its caller sends and is sent, counted and in time.

A request stays the bytes it came in until it is its turn to be read: as a message it may take twenty times that.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError
from neuron_attribution.errors import DeadlineExceededError, InvalidArgumentError, NeuronAttributionError
from neuron_attribution.transport.status import public_message, status_code, trailing_metadata

from neuron_attribution_server.front_end.calls.calls import REQUEST_ID_KEY, Call
from neuron_attribution_server.front_end.transfer.byte_budget import ByteBudget, Held, Holding
from neuron_attribution_server.front_end.transfer.caller_timeouts import CallerTimeout, CallerTimeoutTerms, Mark, Timer
from neuron_attribution_server.settings.config import ServerConfig

Request = TypeVar("Request")
Context = grpc.aio.ServicerContext[Any, Any]
Metadata = tuple[tuple[str, str | bytes], ...]

CALL_BYTES = 64 * 1024
"""What a request takes at least: gRPC reads so far ahead of whoever waits, and objects take as much."""
ITEM_BYTES = 16 * 1024
"""What an item of a stream takes at least."""
COPIES = 2
"""How often an answer is in memory while it is sent: gRPC copies it."""
ITEM_COPIES = 3
"""The same of an answer in a stream: as it came from the worker, as it is built in turn, and gRPC's copy of that."""
_READ, _LATE, _TAKEN = "read", "late", "taken back"


class CallerGoneError(Exception):
    """The caller has cancelled the call, or is connected no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all calls keep to: their budgets, what a call may hold of answers, and how large a request may be."""

    answers: ByteBudget
    call_answers: int
    requests: ByteBudget
    largest_request: int
    timeout: CallerTimeoutTerms


def terms(config: ServerConfig, hang_up: Callable[[str], None], noted: Callable[[], None]) -> Terms:
    """The terms of a server; `hang_up` closes connections, `noted` hears of callers that do not read."""
    answers = Held("answers that are computed or not read yet", reason="UNREAD_ANSWERS")
    requests = Held("requests that come in or are not answered yet", reason="HELD_REQUESTS")
    return Terms(
        answers=ByteBudget(answers, config.unread_bytes, config.tenant_share),
        call_answers=config.call_unread_bytes,
        requests=ByteBudget(requests, config.held_request_bytes, config.tenant_share),
        largest_request=max(CALL_BYTES, config.maximum_request_bytes),
        timeout=CallerTimeoutTerms(config.transfer_timeout, hang_up, noted),
    )


class Received(Generic[Request]):
    """A request as it came, and the room it takes."""

    def __init__(self, data: bytes, deserialize: Callable[[bytes], Request], holding: Holding, least: int) -> None:
        self._data = data
        self._deserialize = deserialize
        self._holding = holding
        self._least = least
        self.size = len(data)
        """Bytes, as it came."""
        self.takes(self.size)

    def takes(self, size: int) -> None:
        """Hold room for so many bytes from now on, or for the least that is counted."""
        self._holding.resize(max(self._least, size))

    def release(self) -> None:
        """Hold room no more."""
        self._holding.release()

    def take(self) -> Request:
        """Read the message, once: nothing of it is kept here. Raises InvalidArgumentError where it is none."""
        data, self._data = self._data, b""
        try:
            return self._deserialize(data)
        except DecodeError:
            raise InvalidArgumentError(
                "the request is not a protobuf message of this call's request type, or a text in it is not valid UTF-8",
                reason="MALFORMED_MESSAGE",
            ) from None


class Exchange:
    """What a call's handler reads from and writes to. As a context manager it ends with the call.

    Reading and writing raise CallerGoneError where the caller has gone.
    """

    def __init__(self, context: Context, call: Call, terms: Terms) -> None:
        self._context = context
        self._call = call
        self._terms = terms
        mark = Mark(call.request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, mark),))
        self._mark = weakref.ref(mark)
        self._timeout = CallerTimeout(terms.timeout, context, mark)
        self.answers = terms.answers.of_call(terms.call_answers)
        """What it may hold of answers."""
        self._requests = terms.requests.of_call()
        self._request, self._answer = Holding(self._requests, 0), Holding(self.answers, 0)
        self._items = 0
        self._awaited: tuple[Holding, asyncio.Future[str]] | None = None

    @property
    def caller_was_too_slow(self) -> bool:
        """Whether the call was ended because an answer was not read."""
        return self._timeout.is_lost

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, if there is one."""
        return self._context.time_remaining()

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send the headers before anything else is written."""
        await self._context.send_initial_metadata(metadata)

    async def request(self, deserialize: Callable[[bytes], Request]) -> Received[Request]:
        """The only request of a call.

        Raises ResourceExhaustedError where there is no room for it, and DeadlineExceededError where it does not come.
        """
        seconds = self._terms.timeout.seconds
        try:
            self._request = await self._requests.room(self._terms.largest_request, seconds)
        except TimeoutError:
            raise self._terms.requests.full() from None
        begun = time.perf_counter()
        data = await self._read(self._request, seconds)
        self._call.waited += time.perf_counter() - begun
        if data is None:
            raise InvalidArgumentError("the call has no request", reason="MALFORMED_MESSAGE")
        return Received(data, deserialize, self._request, CALL_BYTES)

    async def requests(self, deserialize: Callable[[bytes], Request]) -> AsyncIterator[Received[Request]]:
        """The requests of a stream; whoever gets one releases its room. None is read while there is no room for it."""
        while True:
            place = await self._requests.room(self._terms.largest_request)
            try:
                data = await self._read(place, None)
            except BaseException:
                place.release()
                raise
            if data is None:
                place.release()
                return
            yield Received(data, deserialize, place, ITEM_BYTES)

    @contextmanager
    def item(self, received: Received[Any]) -> Iterator[None]:
        """While an item of a stream is answered its caller may wait, and send nothing, for as long as that takes."""
        self._items += 1
        self._lend_or_keep()
        try:
            yield
        finally:
            received.release()
            self._items -= 1
            self._lend_or_keep()

    def expect(self, size: int) -> None:
        """Hold room for the only answer of a call. Raises ResourceExhaustedError where there is none."""
        self._answer = self.answers.hold(COPIES * size)

    async def answer(self, message: bytes) -> None:
        """Send the only answer of a call."""
        self._answer.resize(COPIES * len(message))
        begun = time.perf_counter()
        try:
            await self.write(message)
        finally:
            self._call.waited += time.perf_counter() - begun

    async def write(self, message: bytes) -> None:
        """Send an answer; when this returns, the caller has let all of it be sent."""
        timer = self._timeout.begin(len(message))
        try:
            await self._context.write(message)
        except grpc.aio.BaseError:
            raise CallerGoneError from None
        finally:
            timer.cancel()

    async def abort(self, error: NeuronAttributionError, metadata: Metadata = ()) -> NoReturn:
        """End the call with an error."""
        identity = self._mark() or self._call.request_id
        trailer = (*trailing_metadata(error), (REQUEST_ID_KEY, identity), *metadata)
        timer = self._timeout.begin(0)
        try:
            await self._context.abort(status_code(error), public_message(error), trailer)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError:
            if status_code(error) is grpc.StatusCode.INVALID_ARGUMENT:  # as when it goes before its request has come
                self._context.set_code(grpc.StatusCode.CANCELLED)
            raise CallerGoneError from None
        finally:
            timer.cancel()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._request.release()
        self._answer.release()

    async def _read(self, place: Holding, seconds: float | None) -> bytes | None:
        """The next message, or None where there is none; its place may be taken back meanwhile."""
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._context.read())
        settled: asyncio.Future[str] = loop.create_future()
        # gRPC loses the memory of what comes in when nobody waits for it any more, so this is never cancelled.
        reading.add_done_callback(partial(_settle, settled, _READ))
        timer = None if seconds is None else Timer(seconds, partial(_settle, settled, _LATE))
        self._awaited = place, settled
        self._lend_or_keep()
        try:
            outcome = await settled
        finally:
            place.keep()
            self._awaited = None
            if timer is not None:
                timer.cancel()
        if outcome is _READ:
            return _message(reading)
        if outcome is _TAKEN:
            raise self._terms.requests.full()
        raise DeadlineExceededError(f"the request did not come in {seconds:g} seconds", reason="REQUEST_TOO_SLOW")

    def _lend_or_keep(self) -> None:
        """Lend the room of a request that is awaited while the caller waits for nothing."""
        if self._awaited is None:
            return
        place, settled = self._awaited
        if self._items:
            place.keep()
        else:
            place.lend(partial(_settle, settled, _TAKEN))


def _settle(settled: asyncio.Future[str], outcome: str, reading: asyncio.Task[Any] | None = None) -> None:
    """Tell what a read ended with, unless something came before."""
    if reading is not None and not reading.cancelled():
        reading.exception()  # asyncio would log one that nobody has looked at
    if not settled.done():
        settled.set_result(outcome)


def _message(reading: asyncio.Task[Any]) -> bytes | None:
    try:
        message = reading.result()
    except grpc.aio.BaseError:
        raise CallerGoneError from None
    return message if isinstance(message, bytes) else None  # EOF, which the stubs do not know
