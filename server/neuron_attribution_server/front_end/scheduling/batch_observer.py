"""Batches as the scheduler runs them, noted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuron_attribution_server.front_end.observability.metrics import Metrics
from neuron_attribution_server.front_end.scheduling.batches import padded_tokens
from neuron_attribution_server.front_end.scheduling.request_queue import QueuedTask
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.tasks import ProjectTask

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from neuron_attribution_server.front_end.observability.tracing import Tracing


class BatchObserver:
    """Notes what batches hold, how long it waited, and what workers report of them."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def begins(self, batch: Sequence[QueuedTask], started: float) -> BatchObservation:
        """A batch that begins. `started` is on the event loop's clock."""
        return BatchObservation(batch, started, self._metrics, self._tracing)

    def compared(self, predicted: float, report: BatchReport) -> None:
        """Note what a batch was predicted to take, in seconds, beside what it took."""
        self._metrics.batch_predicted(predicted, report)


class BatchObservation:
    """One batch. It is noted in the event loop's next round: the batch, and at last its answers, go first."""

    def __init__(self, batch: Sequence[QueuedTask], started: float, metrics: Metrics, tracing: Tracing | None) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._span: Span | None = None
        asyncio.get_running_loop().call_soon(self._begins, batch, started, time.time_ns())

    def reported(self, report: BatchReport) -> None:
        """Note what a worker reports of it."""
        asyncio.get_running_loop().call_soon(self._reported, report)

    def ends(self) -> None:
        """Note that its answers are there."""
        asyncio.get_running_loop().call_soon(self._ends, time.time_ns())

    def _begins(self, batch: Sequence[QueuedTask], started: float, now: int) -> None:
        for item in batch:
            self._metrics.waited(started - item.enqueued, None if item.call is None else item.call.exemplar)
        self._metrics.batch_begins(len(batch), *_tokens(batch))
        if self._tracing is not None:
            self._span = self._tracing.batch_begins(batch, started, now)

    def _reported(self, report: BatchReport) -> None:
        self._metrics.batch_reported(report)
        if self._tracing is not None and self._span is not None:
            self._tracing.batch_reported(self._span, report)

    def _ends(self, now: int) -> None:
        if self._span is not None:
            self._span.end(now)


def _tokens(batch: Sequence[QueuedTask]) -> tuple[int, int]:
    """The tokens that go through the model, without and with padding; projections have none."""
    tasks = [item.task for item in batch if not isinstance(item.task, ProjectTask)]
    return (sum(task.tokens for task in tasks), padded_tokens(tasks)) if tasks else (0, 0)
