"""One HTTP connection of aiohttp: how long its caller may take over each thing, and no word of it in the log."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

HEADER_SECONDS = 10.0
"""How long the handshake of TLS may take, and then the headers of the first request."""

IDLE_SECONDS = 75.0
"""How long a connection is kept for a next request; aiohttp's own is an hour, for proxies in front of it."""

SENDING_SECONDS = 300.0
"""How long a caller may take to read an answer, which is held in memory meanwhile."""

_log = logging.getLogger(__name__)


class Activity(IntEnum):
    """What a connection is about; where there are too many, the first of these is given up first."""

    NEW = 0
    IDLE = 1
    SENDING = 2
    WORKING = 3


class Connection(web.RequestHandler):
    """Exceptions of aiohttp quote the request: a header with its token, a body's bytes. Only their types are told."""

    port_name = "HTTP port"
    """What the log calls it."""
    headers: Mapping[str, str] = MappingProxyType({})
    """What every answer carries."""

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:  # noqa: ANN401 - aiohttp's
        super().__init__(server, loop=loop, **options)
        self.activity = Activity.NEW
        self.since = loop.time()
        """When the activity began, on the event loop's clock."""
        self._first_request: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; an answer counts as sent when the kernel has all of it."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)
        self._first_request = self._loop.call_later(HEADER_SECONDS, self.hang_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._has_asked()
        super().connection_lost(exc)

    def works(self) -> None:
        """Note that a request has come and is being answered."""
        self._has_asked()
        self._is_about(Activity.WORKING)

    def hang_up(self) -> None:
        """Close at once, whatever is still to be sent."""
        if self.transport is not None:
            self.transport.abort()

    async def send(self, request: web.BaseRequest, response: web.StreamResponse, until: float = math.inf) -> bool:
        """Send an answer, unless that was done; hang up where its caller has not read it in time.

        That is `until`, on the event loop's clock, and at most SENDING_SECONDS. Returns whether the answer is sent.
        """
        self._is_about(Activity.SENDING)
        response.headers.update(self.headers)
        try:
            async with asyncio.timeout_at(min(until, self._loop.time() + SENDING_SECONDS)):
                await response.prepare(request)
                await response.write_eof()
        except ConnectionError:
            return False
        except TimeoutError:
            _log.warning("a caller of the %s did not read an answer in time; hanging up", self.port_name)
            self.hang_up()
            return False
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send any answer."""
        if not await self.send(request, resp):
            return resp, True
        ended = await super().finish_response(request, resp, start_time)
        self._is_about(Activity.IDLE)
        return ended

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as HTTP, or what failed."""
        self.log_exception(exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is sent already")
        response = self.unanswerable(status, type(exc).__name__)
        response.force_close()
        return response

    def unanswerable(self, status: int, cause: str) -> web.StreamResponse:
        """The answer to what could not be read as HTTP (400, by which exception), or what failed (500)."""
        return web.Response(status=status, text=f"{status} {cause}\n" if status < 500 else f"{status}\n")

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:  # noqa: ANN401 - aiohttp's
        """Tell its type alone: a failure of our own, or bytes that are no HTTP."""
        level = logging.DEBUG if isinstance(exc_info, HttpProcessingError) else logging.WARNING
        _log.log(level, "a connection of the %s ended by %s", self.port_name, type(exc_info).__name__)

    def _has_asked(self) -> None:
        if self._first_request is not None:
            self._first_request.cancel()
            self._first_request = None

    def _is_about(self, activity: Activity) -> None:
        self.activity = activity
        self.since = self._loop.time()
