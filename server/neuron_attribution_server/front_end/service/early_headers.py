"""Response headers that leave while the answer is still being written."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

from neuron_attribution_server.front_end.transfer.exchange import Exchange


class EarlyHeaders:
    """Sends a call's headers once its answer is computed, so that the answer finds the connection and its caller awake.

    Not any sooner: a client that has seen headers does not repeat the call by itself where it fails.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._sending: asyncio.Task[None] | None = None

    def send(self) -> None:
        """Begin to send them, unless that was done."""
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        with suppress(Exception):  # the caller has gone; whatever comes next will notice
            await self._exchange.send_initial_metadata(())

    async def __aenter__(self) -> EarlyHeaders:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing else may be sent meanwhile."""
        if self._sending is not None:
            await self._sending
