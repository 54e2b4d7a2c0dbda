"""What a call's HTTP request says: by when it is to be answered, for whom, and its body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from neuron_attribution.errors import DeadlineExceededError, InvalidArgumentError
from neuron_attribution.transport.channel import DEFAULT_TIMEOUT

from neuron_attribution_server.front_end.calls.calls import REQUEST_ID_KEY
from neuron_attribution_server.front_end.web.answers import encoded
from neuron_attribution_server.front_end.web.held_bytes import Held
from neuron_attribution_server.front_end.web.turns import QUICK

BODY_SECONDS = 60.0
"""How long a body may take to come, whatever time the call is allowed."""

TIMEOUT_HEADER = "Grpc-Timeout"
_FORWARDED = ("authorization", REQUEST_ID_KEY, "traceparent", "tracestate")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_TIMEOUT = 86_400.0


def timeout(request: web.Request) -> float:
    """The seconds within which the call is to be answered. Raises InvalidArgumentError."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return DEFAULT_TIMEOUT
    match = re.fullmatch(r"([0-9]{1,8})([HMSmun])", text, re.ASCII)
    if match is None:
        raise InvalidArgumentError(f"{TIMEOUT_HEADER}: write a number and a unit of H, M, S, m, u, n, such as 30S")
    return min(int(match[1]) * _UNITS[match[2]], _LONGEST_TIMEOUT)


def metadata(request: web.Request) -> tuple[tuple[str, str], ...]:
    """The metadata of the call."""
    given = ((name, request.headers.get(name, "")) for name in _FORWARDED)
    return tuple((name, value) for name, value in given if value and value.isascii() and value.isprintable())


async def body(request: web.Request, largest: int, held: Held) -> bytes:
    """The request's body. Only JSON is taken: a form of another site cannot send it.

    What it has beyond a short one is `held`. Raises InvalidArgumentError, DeadlineExceededError, ResourceExhaustedError
    and HTTPRequestEntityTooLarge.
    """
    if request.content_type != "application/json":
        raise InvalidArgumentError("the request is not JSON: send the header 'Content-Type: application/json'")
    if "Content-Encoding" in request.headers:
        raise encoded()
    announced = request.content_length or 0
    if announced > largest:
        raise web.HTTPRequestEntityTooLarge(largest, announced)
    try:
        async with in_time(asyncio.get_running_loop().time() + BODY_SECONDS):
            return await _read(request, largest, held)
    except web.RequestPayloadError:
        raise InvalidArgumentError(
            "the request's body ends early or is cut wrongly", reason="MALFORMED_MESSAGE"
        ) from None


@asynccontextmanager
async def in_time(deadline: float) -> AsyncIterator[None]:
    """Stop waiting at the deadline, on the event loop's clock. Raises DeadlineExceededError then."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceededError("the time allowed ran out") from None


async def _read(request: web.Request, largest: int, held: Held) -> bytes:
    """The body as it comes; aiohttp's own way keeps a copy until the call is answered."""
    read = bytearray()
    async for part in request.content.iter_any():
        read += part
        if len(read) > largest:
            raise web.HTTPRequestEntityTooLarge(largest, len(read))
        held.grow_to(len(read) - QUICK)
    return bytes(read)
