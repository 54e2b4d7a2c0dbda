"""The standard health service: the latest status of each name, for whoever asks and for whoever watches.

`grpc_health` has one that waits for its watchers when a status is set: a single one that does not read stops whoever
sets it. Here nobody waits for a watcher, a watcher is told the latest status it has not been told yet, and one that
does not take it is hung up on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuron_attribution_server.front_end.transfer import hanging_up
from neuron_attribution_server.front_end.transfer.exchange import Context

MOST_WATCHERS = 1000
"""Watchers of one port at a time."""
LONGEST_NAME = 256
"""Characters of a service's name that may be asked for."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The statuses of some services, which are NOT_SERVING at first. Use it from the event loop only."""

    def __init__(self, services: Iterable[str]) -> None:
        self._statuses = dict.fromkeys(services, NOT_SERVING)
        self._changed = asyncio.Event()
        self.ended = False
        """Whether nothing will change any more."""

    @property
    def statuses(self) -> dict[str, int]:
        """The status of each service."""
        return self._statuses

    def set(self, service: str, status: int) -> None:
        """Set a status. Whoever watches it will hear of it; nobody is waited for."""
        self._statuses[service] = status
        self._announce()

    def end(self) -> None:
        """Let every watch end once it has told the last status."""
        self.ended = True
        self._announce()

    async def changed(self) -> None:
        """Wait until something has been set."""
        await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # unknown to the stubs
    """Answers on one port."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._watchers = 0

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: ANN401 - messages that stubs do not know
        """Tell a service's status. NOT_FOUND where there is none of that name."""
        status = self._health.statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no service of that name")
        hanging_up.ends_soon(context)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Context) -> Any:  # noqa: ANN401
        """Tell the statuses of all services."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status) for name, status in self._health.statuses.items()
        }
        hanging_up.ends_soon(context)
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Context) -> None:  # noqa: ANN401
        """Tell a service's status and each later one; SERVICE_UNKNOWN where there is none of that name.

        RESOURCE_EXHAUSTED where too many watch.
        """
        if len(request.service) > LONGEST_NAME:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the name is longer than {LONGEST_NAME} characters")
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch; ask with Check instead")
        self._watchers += 1
        try:
            await self._watch(request.service, context)
        finally:
            self._watchers -= 1

    async def _watch(self, service: str, context: Context) -> NoReturn:
        told = None
        while True:
            status = self._health.statuses.get(service, _UNKNOWN)
            if status != told:
                with hanging_up.taken(context):
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            elif self._health.ended:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server ends")
            else:
                await self._health.changed()
