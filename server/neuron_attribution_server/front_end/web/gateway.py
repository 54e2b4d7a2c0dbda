"""The web page, and the calls as JSON over HTTP, in front of the same servicer."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from neuron_attribution.errors import InternalError

from neuron_attribution_server.front_end.calls.calls import REQUEST_ID_KEY, request_id
from neuron_attribution_server.front_end.http.port import HttpPort
from neuron_attribution_server.front_end.security.reloading import Reloaded
from neuron_attribution_server.front_end.security.tokens import TokenTable
from neuron_attribution_server.front_end.web.answers import failure
from neuron_attribution_server.front_end.web.calls import JsonCalls
from neuron_attribution_server.front_end.web.connection import WebConnection
from neuron_attribution_server.front_end.web.hosts import only_own_names
from neuron_attribution_server.front_end.web.page import page_files
from neuron_attribution_server.front_end.web.tls import web_context
from neuron_attribution_server.settings.config import ServerConfig

_CLOSE_SECONDS = 1.0
_LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, as Linux has it."""

_log = logging.getLogger(__name__)


class WebGateway:
    """Serves HTTP and asks `server`, which no other process reaches: interceptors see its calls like any other.

    `server` listens on a Unix socket in a folder of this process's own. Raises OSError
    and RuntimeError where it cannot listen, and ConfigurationError for certificates that cannot be used.
    """

    def __init__(self, config: ServerConfig, server: grpc.aio.Server, tokens: Reloaded[TokenTable] | None) -> None:
        self._config = config
        self._server = server
        self._tokens = tokens
        self._folder = Path(tempfile.mkdtemp(prefix="neuron-attribution-"))
        self._channel: grpc.aio.Channel | None = None
        self._calls: JsonCalls | None = None
        self._port: HttpPort | None = None
        self.address = ""
        """HOST:PORT that is listened on, once started."""

    async def start(self, listen: str) -> None:
        """Listen."""
        context = web_context(self._config)
        host = listen.rpartition(":")[0].strip("[]")
        middlewares = [*await only_own_names(host), _answered]
        self._calls = JsonCalls(self._config, await self._connected(), self._tokens)
        application = _application(self._calls, middlewares)
        self._port = HttpPort(application, WebConnection, self._config.web_connections, self._config.grace)
        self.address = await self._port.start(listen, context)

    async def stop(self) -> None:
        """Refuse new calls, and let running ones finish within the grace."""
        if self._port is not None:
            await self._port.stop()
        if self._calls is not None:
            self._calls.close()
        if self._channel is not None:
            await self._channel.close(None)
        await self._server.stop(_CLOSE_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _connected(self) -> grpc.aio.Channel:
        """A channel to `server`, which is started."""
        path = f"{self._folder}/calls"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            raise OSError(errno.ENAMETOOLONG, f"the folder for its socket, {self._folder}, is too long: shorten TMPDIR")
        self._server.add_insecure_port(f"unix:{path}")
        await self._server.start()
        options = (("grpc.max_receive_message_length", self._config.maximum_message_bytes),)
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options)
        return self._channel


def _application(calls: JsonCalls, middlewares: Sequence[Middleware]) -> web.Application:
    application = web.Application(middlewares=middlewares)
    for path, file in page_files().items():
        application.router.add_get(path, _serving(file.content, file.kind))
    application.router.add_post("/v1/{method}", calls.answer)
    return application


def _serving(content: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"})

    return serve


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.Response(status=error.status, text=f"{error.status} {error.reason}\n")
    except Exception as error:
        return _internal(request, error)


def _internal(request: web.Request, error: Exception) -> web.Response:
    """The answer to a bug. Its place goes to the log; its message may quote the request and does not."""
    identity = request_id({REQUEST_ID_KEY: request.headers.get(REQUEST_ID_KEY, "")})
    place = "".join(traceback.format_tb(error.__traceback__))
    _log.error("request %s failed: %s\n%s", identity, type(error).__name__, place)
    return failure(InternalError("internal error", request_id=identity), identity)
