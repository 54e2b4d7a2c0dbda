"""Metrics over HTTP, for Prometheus to fetch."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import MappingProxyType

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from neuron_attribution_server.front_end.http.connection import Connection
from neuron_attribution_server.front_end.http.port import HttpPort

CONNECTIONS = 32
"""Connections at a time: two or three Prometheus servers fetch, and people look."""

_PATHS = ("/metrics", "/")


class MetricsEndpoint:
    """Serves a registry in a thread with an event loop of its own, so that it answers whatever the server's does.

    It collects for one caller at a time. Raises OSError where the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        self._registry = registry
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listen)), name="metrics", daemon=True)
        self._thread.start()
        self.address = self._started.result()
        """HOST:PORT that is listened on."""

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    async def _serve(self, listen: str) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        port = HttpPort(self._application(), _MetricsConnection, CONNECTIONS)
        try:
            address = await port.start(listen)
        except Exception as error:
            self._started.set_exception(error)
        else:
            self._started.set_result(address)
            await self._ending.wait()
        await port.stop()

    def _application(self) -> web.Application:
        application = web.Application()
        for path in _PATHS:
            application.router.add_get(path, self._answer)
        return application

    async def _answer(self, request: web.Request) -> web.Response:
        """The metrics, or those of them that are asked for by `name[]`, in the format that is asked for."""
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        names = request.query.getall("name[]", [])
        answer = encode(self._registry.restricted_registry(names) if names else self._registry)
        response = web.Response(body=answer, headers={"Content-Type": kind})
        response.force_close()  # one connection brings no more than one collection
        if gzip_accepted(request.headers.get("Accept-Encoding", "")):
            response.enable_compression(web.ContentCoding.gzip)
        return response


class _MetricsConnection(Connection):
    port_name = "metrics port"
    headers = MappingProxyType({"Server": "neuron-attribution"})
