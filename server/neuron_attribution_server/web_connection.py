"""Connections of the web page: what aiohttp refuses by itself is answered and logged without the caller's words."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from neuron_attribution.errors import InternalError, InvalidArgumentError

from neuron_attribution_server.web_calls import failure
from neuron_attribution_server.web_page import HEADERS

IDLE_SECONDS = 75.0
"""How long a connection is kept for a next request; aiohttp's own is an hour, for proxies in front of it."""

SENDING_SECONDS = 300.0
"""How long a caller may take to read an answer, which is held in memory meanwhile."""

_log = logging.getLogger(__name__)


class WebRunner(web.AppRunner):
    """Runs an application on connections that keep callers' texts out of the log. Bodies stay as they were sent."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            keepalive_timeout=IDLE_SECONDS,
            access_log=None,
            auto_decompress=False,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """Exceptions of aiohttp quote the request: a header with its token, a body's bytes. Only their types are told."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; an answer counts as sent when the kernel has all of it."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:  # noqa: ANN401 - aiohttp's
        _log.warning("a connection of the web page ended by %s", type(exc_info).__name__)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as HTTP."""
        self.log_exception(exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is sent already")
        cause = type(exc).__name__
        unread = InvalidArgumentError(f"this is no HTTP request that can be read: {cause}", reason="MALFORMED_MESSAGE")
        response = failure(unread if status < 500 else InternalError("internal error"))
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send any answer, with the headers that all carry, to whoever reads it in time."""
        resp.headers.update(HEADERS)
        try:
            async with asyncio.timeout(SENDING_SECONDS):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            _log.warning("a caller of the web page did not read an answer in %g seconds; hanging up", SENDING_SECONDS)
            if self.transport is not None:
                self.transport.abort()
            return resp, True
