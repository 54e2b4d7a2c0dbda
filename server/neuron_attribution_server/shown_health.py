"""What health and metrics say: the server serves while its model is loaded and its worker lives, until it drains."""

from __future__ import annotations

from neuron_attribution_server.front_end.endpoints.health import NOT_SERVING, SERVING, Health
from neuron_attribution_server.front_end.workers.interface import Worker
from neuron_attribution_server.live_metrics import LiveMetrics
from neuron_attribution_server.services import LIVENESS, SERVICE


class ShownHealth:
    """The server's health, and that it drains, told to whoever watches `statuses` and in the metrics."""

    def __init__(self, metrics: LiveMetrics) -> None:
        self._metrics = metrics
        self.statuses = Health(("", SERVICE, LIVENESS))

    def live(self) -> None:
        """Say that the process answers."""
        self.statuses.set(LIVENESS, SERVING)

    def serve(self) -> None:
        """Say that the model is loaded."""
        self._show(SERVING)

    def drain(self) -> None:
        """Say NOT_SERVING for good, whatever the worker does."""
        self._metrics.draining = True
        self._show(NOT_SERVING)

    def end(self) -> None:
        """Let every watch end once it has told the last status."""
        self.statuses.end()

    async def follow(self, worker: Worker) -> None:
        """Show a worker's health as the server's, for ever, after `serve`."""
        shown = True
        while True:
            while worker.is_live == shown:
                await worker.changed()
            shown = worker.is_live
            self._show(SERVING if shown else NOT_SERVING)

    def _show(self, status: int) -> None:
        self._metrics.serving = status == SERVING
        for service in ("", SERVICE):
            self.statuses.set(service, NOT_SERVING if self._metrics.draining else status)
