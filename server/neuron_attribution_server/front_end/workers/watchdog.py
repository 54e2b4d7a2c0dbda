"""Tells when a worker process is overdue: it shows no sign of life, or its load or batch takes too long."""

from __future__ import annotations

import asyncio

TICK_SECONDS = 0.25
LOADING_SILENCE = 300.0
"""Seconds without a beat that are forgiven while a model is loaded: importing libraries can hold the interpreter."""


class Watchdog:
    """Counts in ticks of the event loop, not by the clock: while the server itself stood still, nobody is to blame."""

    def __init__(self, load_timeout: float, heartbeat_timeout: float, batch_timeout: float) -> None:
        """All limits are in seconds. Loading begins at once."""
        self._load_timeout = load_timeout
        self._heartbeat_timeout = heartbeat_timeout
        self._batch_timeout = batch_timeout
        self._allowed_silence = max(heartbeat_timeout, LOADING_SILENCE)
        self._silence = 0.0
        self._loading: float | None = 0.0
        self._running: list[float] = []

    def beat(self) -> None:
        """Note a sign of life."""
        self._silence = 0.0

    def loaded(self) -> None:
        """From now on silence is not forgiven for longer than the time for heartbeats."""
        self._allowed_silence = self._heartbeat_timeout
        self._loading = None

    def batch_begins(self) -> None:
        """Start to count the time of a batch; that of one which it interrupts stands still meanwhile."""
        self._running.append(0.0)

    def batch_ends(self) -> None:
        """Stop to count the time of the batch that began last."""
        if self._running:
            self._running.pop()

    @property
    def counts_a_batch(self) -> bool:
        """Whether the time of a batch is being counted."""
        return bool(self._running)

    async def overdue(self) -> str:
        """Wait until the worker is overdue; say why."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._silence += TICK_SECONDS
            if self._silence > self._allowed_silence:
                return f"it has shown no sign of life for {self._allowed_silence:g} seconds (heartbeat_timeout)"
            if self._loading is not None:
                self._loading += TICK_SECONDS
                if self._loading > self._load_timeout:
                    return f"it has been loading for {self._load_timeout:g} seconds (load_timeout)"
            if self._running:
                self._running[-1] += TICK_SECONDS
                if self._running[-1] > self._batch_timeout:
                    return f"its batch has been running for {self._batch_timeout:g} seconds (batch_timeout)"
