"""The server: gRPC, health and reflection around one worker, from listening to draining."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from neuron_attribution.errors import UnavailableError
from neuron_attribution.v1 import neuron_attribution_pb2, neuron_attribution_pb2_grpc

from neuron_attribution_server.front_end.endpoints.health import NOT_SERVING, SERVING, Health, HealthServicer
from neuron_attribution_server.front_end.endpoints.metrics import MetricsEndpoint
from neuron_attribution_server.front_end.endpoints.ports import ListenError, health_options, listen_on, service_options
from neuron_attribution_server.front_end.interceptors.calls import CallInterceptor
from neuron_attribution_server.front_end.interceptors.errors import ErrorInterceptor
from neuron_attribution_server.front_end.observability.metrics import Metrics
from neuron_attribution_server.front_end.observability.rpc_metrics import RpcMetrics
from neuron_attribution_server.front_end.scheduling.batch_observer import BatchObserver
from neuron_attribution_server.front_end.scheduling.scheduler import Scheduler
from neuron_attribution_server.front_end.security.authentication import AuthenticationInterceptor, token_file
from neuron_attribution_server.front_end.security.credentials import server_certificate
from neuron_attribution_server.front_end.service.result_cache import ResultCache
from neuron_attribution_server.front_end.service.served_model import ServedModel
from neuron_attribution_server.front_end.service.servicer import AttributionServicer, Backend
from neuron_attribution_server.front_end.transfer.exchange import terms
from neuron_attribution_server.front_end.transfer.hanging_up import hang_up
from neuron_attribution_server.front_end.transfer.patience import note_keepers
from neuron_attribution_server.front_end.web.gateway import WebGateway
from neuron_attribution_server.front_end.workers.interface import ModelLoadError, Worker
from neuron_attribution_server.live_metrics import LiveMetrics, Loaded
from neuron_attribution_server.settings import heap
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig
from neuron_attribution_server.stopping import LATE_SECONDS, LastResort, on_stop_signals, side_by_side

if TYPE_CHECKING:
    from neuron_attribution_server.front_end.observability.tracing import Tracing

SERVICES = (
    neuron_attribution_pb2.DESCRIPTOR.services_by_name["NeuronAttributionService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
SERVICE, HEALTH, _ = (each.full_name for each in SERVICES)
LIVENESS = "liveness"
"""The name that health answers SERVING for as long as it answers at all: without a model, and while draining."""
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
        self._health = Health(("", SERVICE, LIVENESS))
        certificate = server_certificate(config)
        self._credentials = None if certificate is None else certificate.credentials
        self._tokens = None if config.token_file is None else token_file(config.token_file)
        self._server: grpc.aio.Server | None = None
        self._health_server: grpc.aio.Server | None = None
        self._running: list[asyncio.Task[None]] = []
        self._metrics = Metrics()
        self._tracing = _tracing(config)
        self._calls = CallInterceptor(self._metrics, RpcMetrics(self._metrics.registry, SERVICES), self._tracing)
        self._terms = terms(config, hang_up, self._metrics.unread)
        expiry = None if certificate is None else certificate.expiry
        reloaded = {"certificate": certificate, "tokens": self._tokens}
        failing = {name: files.failing for name, files in reloaded.items() if files is not None}
        self._live = LiveMetrics(config, worker, self._metrics.gpu_memory, expiry, failing, self._terms)
        self._metrics.registry.register(self._live)
        self._metrics_endpoint: MetricsEndpoint | None = None
        self._web: WebGateway | None = None
        self.address = ""
        """HOST:PORT that is listened on, once started."""
        self.health_address = ""
        """HOST:PORT of the health port, once started, if there is one."""
        self.metrics_address = ""
        """HOST:PORT of the metrics, once started, if they are served."""
        self.web_address = ""
        """HOST:PORT of the web page, once started, if it is served."""

    async def run(self, last_resort: LastResort | None = None) -> int:
        """Serve until SIGTERM, SIGINT or SIGHUP; return the exit status: 0 after a signal, 1 after a failure.

        What does not end in time then, `last_resort` ends.
        """
        stopping = asyncio.Event()

        def stop(number: signal.Signals) -> None:
            _log.info("%s: the server drains and ends", number.name)
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
        return status

    async def start(self) -> None:
        """Listen; every call but health and reflection is refused as unavailable until the model is loaded."""
        _log.info("configuration: %s", self._config)
        note_keepers(asyncio.get_running_loop())
        self._health.set(LIVENESS, SERVING)
        if self._tokens is not None and self._credentials is None:
            _log.warning("tokens are asked for without TLS: they cross the network for anyone on it to read")
        self._server = self._build_server()
        if self._config.reflection:
            reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), self._server)
        self.address = listen_on(self._server, self._config.listen, self._credentials)
        if self._config.metrics_listen is not None:
            self._serve_metrics(self._config.metrics_listen)
        if self._config.health_listen is not None:
            await self._start_health_server(self._config.health_listen)
        if self._config.web is not None:
            await self._start_web(self._config.web)
        await self._server.start()

    async def load(self) -> None:
        """Load the model and serve. Raises ModelLoadError."""
        facts = await self._worker.start()
        model = await asyncio.to_thread(ServedModel, facts, self._config.limits(facts.maximum_tokens))
        observer = BatchObserver(self._metrics, self._tracing)
        scheduler = Scheduler(self._worker, self._config, facts.memory, model.predictor, observer)
        cache = ResultCache(self._config.cache_bytes)
        self._servicer.open(Backend(model, scheduler, cache))
        self._live.loaded = Loaded(facts, scheduler.queue, cache)
        self._set_health(SERVING)
        lasting = scheduler.run(), self._follow_worker(), heap.keep_giving_back()
        self._running = [asyncio.create_task(each) for each in lasting]

    async def stop(self) -> None:
        """Refuse new calls, let running ones finish within the grace, and end the worker.

        What does not end is left behind, and logged: nobody who is connected can hold the server.
        """
        self._drain()
        self._health.end()
        grace = self._config.grace
        await side_by_side(
            grace + _CUT_SECONDS,
            {
                "the calls": None if self._server is None else self._server.stop(grace),
                "the web page": None if self._web is None else self._web.stop(),
            },
        )
        await side_by_side(
            _SWITCH_SECONDS,
            {
                "health": None if self._health_server is None else self._health_server.stop(None),
                "the batches": self._end_batches(),
            },
        )
        tracing, metrics = self._tracing, self._metrics_endpoint
        await side_by_side(
            _WORKER_SECONDS,
            {
                "the worker": self._worker.stop(),
                "the traces": None if tracing is None else asyncio.to_thread(tracing.close),
                "the metrics": None if metrics is None else asyncio.to_thread(metrics.close),
            },
        )

    async def _run(self, stopping: asyncio.Event) -> int:
        await self.start()
        print(f"listening on {self.address}", flush=True)
        stop = asyncio.create_task(stopping.wait())
        load = asyncio.create_task(self.load())
        await asyncio.wait((stop, load), return_when=asyncio.FIRST_COMPLETED)
        if not load.done():
            load.cancel()
            return 0
        load.result()
        print(f"ready: serving {self._config.model} on {self.address}", flush=True)
        ended = asyncio.create_task(self._worker.ended())
        await asyncio.wait((stop, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return self._give_up()
        # Until its endpoint is gone everywhere, callers still come to this server.
        self._drain()
        await asyncio.wait((ended,), timeout=self._config.drain_delay)
        ended.cancel()
        return 0

    def _give_up(self) -> int:
        _log.error("no worker will come back; the server ends with exit status 1")
        self._servicer.close(UnavailableError("the worker has ended; try again later", reason="WORKER_GONE"))
        return 1

    def _build_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=self._interceptors(), options=service_options(self._config))
        add_service: Any = neuron_attribution_pb2_grpc.add_NeuronAttributionServiceServicer_to_server
        add_service(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._health), server)
        return server

    async def _start_health_server(self, listen: str) -> None:
        self._health_server = grpc.aio.server(interceptors=(self._calls,), options=health_options())
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._health), self._health_server)
        self.health_address = listen_on(self._health_server, listen, None)
        await self._health_server.start()
        _log.info("health without TLS on %s", self.health_address)

    async def _start_web(self, listen: str) -> None:
        try:
            self._web = WebGateway(self._config, self._build_server(), self._tokens)
            await self._web.start(listen)
        except OSError as error:
            raise ListenError(f"cannot serve the web page on {listen}: {error.strerror or error}") from None
        except (ConfigurationError, RuntimeError) as error:
            raise ListenError(f"cannot serve the web page on {listen}: {error}") from None
        self.web_address = self._web.address
        scheme = "http" if self._credentials is None else "https"
        _log.info("web page on %s://%s", scheme, self.web_address)

    def _serve_metrics(self, listen: str) -> None:
        try:
            self._metrics_endpoint = MetricsEndpoint(self._metrics.registry, listen)
        except OSError as error:
            raise ListenError(f"cannot serve metrics on {listen}: {error.strerror}") from None
        self.metrics_address = self._metrics_endpoint.address
        _log.info("metrics on http://%s/metrics", self.metrics_address)

    def _interceptors(self) -> tuple[grpc.aio.ServerInterceptor[Any, Any], ...]:
        if self._tokens is None:
            return self._calls, ErrorInterceptor(self._terms)
        opened = {HEALTH: self._config.open_health, reflection.SERVICE_NAME: self._config.open_reflection}
        open_services = [name for name, is_open in opened.items() if is_open]
        return self._calls, AuthenticationInterceptor(self._tokens, open_services), ErrorInterceptor(self._terms)

    async def _follow_worker(self) -> None:
        """Show the worker's health as the server's."""
        shown = True
        while True:
            while self._worker.is_live == shown:
                await self._worker.changed()
            shown = self._worker.is_live
            self._set_health(SERVING if shown else NOT_SERVING)

    async def _end_batches(self) -> None:
        for task in self._running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _drain(self) -> None:
        """Say NOT_SERVING for good, whatever the worker does."""
        self._live.draining = True
        self._set_health(NOT_SERVING)

    def _set_health(self, status: int) -> None:
        self._live.serving = status == SERVING
        for service in ("", SERVICE):
            self._health.set(service, NOT_SERVING if self._live.draining else status)


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
