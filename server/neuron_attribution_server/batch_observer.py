"""Batches as the scheduler runs them, noted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from neuron_attribution_server.batches import padded_tokens
from neuron_attribution_server.metrics import Metrics
from neuron_attribution_server.reports import collected_reports
from neuron_attribution_server.request_queue import QueuedTask
from neuron_attribution_server.tasks import ProjectTask

if TYPE_CHECKING:
    from neuron_attribution_server.tracing import Tracing


class BatchObserver:
    """Notes what batches hold, how long it waited, and what workers report of them."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._metrics = metrics
        self._tracing = tracing

    @contextmanager
    def observed(self, batch: Sequence[QueuedTask], started: float) -> Iterator[None]:
        """While a batch runs. `started` is on the event loop's clock."""
        for item in batch:
            self._metrics.waited(started - item.enqueued, None if item.call is None else item.call.exemplar)
        self._metrics.batch_begins(len(batch), *_tokens(batch))
        span = None if self._tracing is None else self._tracing.batch_begins(batch, started)
        with collected_reports() as reports:
            try:
                yield
            finally:
                self._metrics.batch_ended(reports)
                if self._tracing is not None and span is not None:
                    self._tracing.batch_ended(span, reports)


def _tokens(batch: Sequence[QueuedTask]) -> tuple[int, int]:
    """The tokens that go through the model, without and with padding; projections have none."""
    tasks = [item.task for item in batch if not isinstance(item.task, ProjectTask)]
    return (sum(task.tokens for task in tasks), padded_tokens(tasks)) if tasks else (0, 0)
