"""One server around one worker: what it is put together from, and its life from listening to draining."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from neuron_attribution.errors import UnavailableError

from neuron_attribution_server.front_end.endpoints.ports import ListenError
from neuron_attribution_server.front_end.interceptors.calls import CallInterceptor
from neuron_attribution_server.front_end.observability.metrics import Metrics
from neuron_attribution_server.front_end.observability.rpc_metrics import RpcMetrics
from neuron_attribution_server.front_end.scheduling.batch_observer import BatchObserver
from neuron_attribution_server.front_end.scheduling.scheduler import Scheduler
from neuron_attribution_server.front_end.security.authentication import token_file
from neuron_attribution_server.front_end.security.credentials import server_certificate
from neuron_attribution_server.front_end.service.result_cache import ResultCache
from neuron_attribution_server.front_end.service.served_model import ServedModel
from neuron_attribution_server.front_end.service.servicer import AttributionServicer, Backend
from neuron_attribution_server.front_end.transfer.caller_timeouts import note_keepers
from neuron_attribution_server.front_end.transfer.exchange import terms
from neuron_attribution_server.front_end.transfer.hanging_up import hang_up
from neuron_attribution_server.front_end.workers.interface import ModelLoadError, Worker
from neuron_attribution_server.listening import Answering, Ports
from neuron_attribution_server.live_metrics import LiveMetrics, Loaded
from neuron_attribution_server.services import SERVICES
from neuron_attribution_server.settings import heap
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig
from neuron_attribution_server.shown_health import ShownHealth
from neuron_attribution_server.stopping import LATE_SECONDS, LastResort, on_stop_signals, side_by_side

if TYPE_CHECKING:
    from neuron_attribution_server.front_end.observability.tracing import Tracing

# How long each step of stopping may take: together less than LATE_SECONDS.
_CUT_SECONDS = 1.5  # after the grace
_SWITCH_SECONDS = 0.5
_WORKER_SECONDS = 6.5

_log = logging.getLogger(__name__)


class Application:
    """One server's life: start, load, serve, stop. `run` does all of it.

    Raises ConfigurationError for certificates and tokens that cannot be used.
    """

    def __init__(self, config: ServerConfig, worker: Worker) -> None:
        self._config = config
        self._worker = worker
        self._servicer = AttributionServicer(
            config.maximum_message_bytes, config.maximum_key_bytes, config.stream_window, config.tenant_share
        )
        certificate = server_certificate(config)
        tokens = None if config.token_file is None else token_file(config.token_file)
        self._metrics = Metrics()
        self._tracing = _tracing(config)
        agreed = terms(config, hang_up, self._metrics.unread)
        reloaded = {"certificate": certificate, "tokens": tokens}
        failing = {name: files.failing for name, files in reloaded.items() if files is not None}
        expiry = None if certificate is None else certificate.expiry
        self._live = LiveMetrics(config, worker, self._metrics.gpu_memory, expiry, failing, agreed)
        self._metrics.registry.register(self._live)
        self._health = ShownHealth(self._live)
        answering = Answering(
            servicer=self._servicer,
            health=self._health.statuses,
            calls=CallInterceptor(self._metrics, RpcMetrics(self._metrics.registry, SERVICES), self._tracing),
            terms=agreed,
            credentials=None if certificate is None else certificate.credentials,
            tokens=tokens,
            metrics=self._metrics.registry,
        )
        self.ports = Ports(config, answering)
        self._running: list[asyncio.Task[None]] = []

    async def run(self, last_resort: LastResort | None = None) -> int:
        """Serve until SIGTERM, SIGINT or SIGHUP; return the exit status: 0 after a signal, 1 after a failure.

        What does not end in time then, `last_resort` ends.
        """
        stopping = asyncio.Event()

        def stop(number: signal.Signals) -> None:
            _log.info("draining", extra={"fields": {"signal": number.name}})
            if last_resort is not None:
                last_resort.within(self._config.drain_delay + self._config.grace + LATE_SECONDS, 0)
            stopping.set()

        on_stop_signals(stop)
        status = 1
        try:
            status = await self._run(stopping)
        except (ModelLoadError, ListenError) as error:
            print(f"neuron-attribution serve: {error}", file=sys.stderr)
        finally:
            if last_resort is not None:
                last_resort.within(self._config.grace + LATE_SECONDS, status)
            await self.stop()
            _log.info("stopped", extra={"fields": {"status": status}})
        return status

    async def start(self) -> None:
        """Listen; every call but health and reflection is refused as unavailable until the model is loaded."""
        _log.info("configuration", extra={"fields": asdict(self._config)})
        note_keepers(asyncio.get_running_loop())
        self._health.live()
        await self.ports.start()

    def _ranges_ready(self) -> float:
        return min((state.prepared for state in self._worker.devices()), default=0.0)

    async def load(self) -> None:
        """Load the model and serve. Raises ModelLoadError."""
        facts = await self._worker.start()
        limits = self._config.limits(facts.maximum_tokens)
        model = await asyncio.to_thread(ServedModel, facts, limits, self._ranges_ready)
        await asyncio.to_thread(model.prepare)
        observer = BatchObserver(self._metrics, self._tracing)
        scheduler = Scheduler(self._worker, self._config, facts.memory, model.predictor, observer)
        cache = ResultCache(self._config.cache_bytes)
        self._servicer.open(Backend(model, scheduler, cache))
        self._live.loaded = Loaded(facts, scheduler.queue, cache)
        self._health.serve()
        lasting = scheduler.run(), self._health.follow(self._worker), heap.keep_giving_back()
        self._running = [asyncio.create_task(each) for each in lasting]

    async def stop(self) -> None:
        """Refuse new calls, let running ones finish within the grace, and end the worker.

        What does not end is left behind, and logged: nobody who is connected can hold the server.
        """
        self._health.drain()
        self._health.end()
        grace, ports = self._config.grace, self.ports
        await side_by_side(
            grace + _CUT_SECONDS, {"the calls": ports.stop_calls(grace), "the web page": ports.stop_web()}
        )
        ending = {"the batches": self._end_batches(), "what renders conversations": self._servicer.end_rendering()}
        await side_by_side(_SWITCH_SECONDS, {"health": ports.stop_health(), **ending})
        tracing = self._tracing
        await side_by_side(
            _WORKER_SECONDS,
            {
                "the worker": self._worker.stop(),
                "the traces": None if tracing is None else asyncio.to_thread(tracing.close),
                "the metrics": ports.stop_metrics(),
            },
        )

    async def _run(self, stopping: asyncio.Event) -> int:
        await self.start()
        print(f"listening on {self.ports.address}", flush=True)
        stop = asyncio.create_task(stopping.wait())
        load = asyncio.create_task(self.load())
        await asyncio.wait((stop, load), return_when=asyncio.FIRST_COMPLETED)
        if not load.done():
            load.cancel()
            return 0
        load.result()
        print(f"ready: serving {self._config.model} on {self.ports.address}", flush=True)
        _log.info("ready", extra={"fields": {"model": self._config.model, "address": self.ports.address}})
        ended = asyncio.create_task(self._worker.ended())
        await asyncio.wait((stop, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return self._give_up()
        # Until its endpoint is gone everywhere, callers still come to this server.
        self._health.drain()
        await asyncio.wait((ended,), timeout=self._config.drain_delay)
        ended.cancel()
        return 0

    def _give_up(self) -> int:
        _log.error("no worker will come back; the server ends with exit status 1")
        self._servicer.close(UnavailableError("the worker has ended; try again later", reason="WORKER_GONE"))
        return 1

    async def _end_batches(self) -> None:
        for task in self._running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _tracing(config: ServerConfig) -> Tracing | None:
    """What sends traces, if they are asked for; OpenTelemetry is an extra."""
    if config.trace_endpoint is None:
        return None
    try:
        from neuron_attribution_server.front_end.observability.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"trace_endpoint needs {error.name}, which is not installed: "
            "pip install 'neuron-attribution[server,tracing]'"
        ) from None
    return Tracing(config.trace_endpoint, config.trace_ratio)
