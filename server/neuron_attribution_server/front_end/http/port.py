"""An address that HTTP is served at, for a limited number of connections: aiohttp knows no limit."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from aiohttp import web

from neuron_attribution_server.front_end.http import connection as http_connection
from neuron_attribution_server.front_end.http.connection import Activity, Connection

Handler: TypeAlias = "Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]"

_BACKLOG = 128
_PAUSE_SECONDS = 1.0
"""How long nothing is accepted where the process may open no more files."""
_TELLING_SECONDS = 60.0
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

_log = logging.getLogger(__name__)


class HttpPort:
    """Serves an application on connections of a `kind`, `most` of them at a time.

    One more is closed at once, unless another can be given up for it: one that has asked nothing yet, then one between
    two requests, then one that does not read its answer; of those the one that has been so for the longest time.
    """

    def __init__(
        self, application: web.Application, kind: type[Connection], most: int, shutdown_timeout: float = 0.0
    ) -> None:
        self._runner = _Runner(application, kind, most, shutdown_timeout)
        self._name = kind.port_name
        self._loop = asyncio.get_running_loop()
        self._context: ssl.SSLContext | None = None
        self._listeners: list[socket.socket] = []

    async def start(self, listen: str, context: ssl.SSLContext | None = None) -> str:
        """Listen; return HOST:PORT with the port that was taken. Raises OSError."""
        host, _, port = listen.rpartition(":")
        self._context = context
        await self._runner.setup()
        self._listeners = await _listeners(host.strip("[]"), int(port))
        for listener in self._listeners:
            self._accept_from(listener)
        return f"{host}:{self._listeners[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Listen no more, and let running requests finish within the shutdown timeout."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        await self._runner.cleanup()

    def _accept_from(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection: those that are given up for it are closed before the next."""
        try:
            link, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):  # it has gone again
            return
        except OSError as error:
            _log.warning("no connection of the %s can be accepted: %s", self._name, error.strerror)
            self._loop.remove_reader(listener)
            self._loop.call_later(_PAUSE_SECONDS, self._accept_from, listener)
        else:
            self._runner.bounded.admit(link, self._context)


class HttpServer(web.Server):
    """Makes connections, and keeps account of them from the moment they are accepted."""

    def __init__(self, handler: Handler, kind: type[Connection], most: int, **options: Any) -> None:  # noqa: ANN401 - aiohttp's
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if isinstance(request.protocol, Connection):
                request.protocol.works()
            return await handler(request)

        super().__init__(handle, **options)
        self._kind = kind
        self._most = most
        self._beginnings: dict[Connection, asyncio.Task[None]] = {}
        self._telling = 0.0

    def __call__(self) -> Connection:
        """A connection that is to be made."""
        return self._kind(self, loop=self._loop, **self._kwargs)

    def admit(self, link: socket.socket, context: ssl.SSLContext | None) -> None:
        """Serve an accepted connection, or close it where there are too many."""
        if len(self._beginnings) >= self._most:
            self._tell_of_the_limit()
            if not self._give_one_up():
                link.close()
                return
        connection = self()
        beginning = self._loop.create_task(self._begin(connection, link, context))
        self._beginnings[connection] = beginning
        beginning.add_done_callback(partial(self._begun, connection, link))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        if isinstance(handler, Connection):
            self._beginnings.pop(handler, None)
        super().connection_lost(handler, exc)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let running requests finish in `timeout` seconds, and close all."""
        for beginning in self._beginnings.values():
            beginning.cancel()
        await super().shutdown(timeout)

    async def _begin(self, connection: Connection, link: socket.socket, context: ssl.SSLContext | None) -> None:
        """Have the connection served, after the handshake of TLS."""
        patience = None if context is None else http_connection.HEADER_SECONDS
        await self._loop.connect_accepted_socket(lambda: connection, link, ssl=context, ssl_handshake_timeout=patience)

    def _begun(self, connection: Connection, link: socket.socket, beginning: asyncio.Task[None]) -> None:
        """Forget a connection that came to nothing: it spoke no TLS, or not in time, or was given up."""
        error = None if beginning.cancelled() else beginning.exception()
        if beginning.cancelled() or error is not None:
            self._beginnings.pop(connection, None)
            link.close()
        if error is not None and not isinstance(error, OSError):
            connection.log_exception(exc_info=error)

    def _tell_of_the_limit(self) -> None:
        """Log it, once a minute at most."""
        if self._loop.time() >= self._telling:
            self._telling = self._loop.time() + _TELLING_SECONDS
            _log.warning("the %s has %d connections and takes no more", self._kind.port_name, self._most)

    def _give_one_up(self) -> bool:
        """End the connection that can best be done without; return whether there is one."""
        found = min(self._beginnings, key=lambda connection: (connection.activity, connection.since))
        if found.activity is Activity.WORKING:
            return False
        self._beginnings.pop(found).cancel()
        found.hang_up()
        return True


class _Runner(web.AppRunner):
    """Runs an application on an HttpServer. Bodies stay as they were sent; a caller who leaves ends the handler."""

    def __init__(self, application: web.Application, kind: type[Connection], most: int, timeout: float) -> None:
        super().__init__(application, handler_cancellation=True, shutdown_timeout=timeout)
        self._kind = kind
        self._most = most

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        self.bounded = HttpServer(
            server.request_handler,
            self._kind,
            self._most,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            keepalive_timeout=http_connection.IDLE_SECONDS,
            access_log=None,
            auto_decompress=False,
        )
        return self.bounded


async def _listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of a host; where any port will do, at the first alone. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    listeners: list[socket.socket] = []
    failures: list[OSError] = []
    for family, address in addresses if port else addresses[:1]:
        try:
            listeners.append(_listener(family, address))
        except OSError as error:
            failures.append(OSError(error.errno, os.strerror(error.errno or 0)))
    # A host may be known by addresses of a family that this machine does not have.
    serious = [failure for failure in failures if not listeners or failure.errno not in _NO_SUCH_FAMILY]
    if serious:
        for listener in listeners:
            listener.close()
        raise serious[0]
    return listeners


def _listener(family: int, address: Any) -> socket.socket:  # noqa: ANN401 - of any family
    listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener
