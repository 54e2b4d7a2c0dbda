"""The server: gRPC, health and reflection around one worker, from listening to draining."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from neuron_attribution.errors import UnavailableError
from neuron_attribution.v1 import neuron_attribution_pb2, neuron_attribution_pb2_grpc

from neuron_attribution_server.authentication import AuthenticationInterceptor, token_file
from neuron_attribution_server.batch_observer import BatchObserver
from neuron_attribution_server.call_interceptor import CallInterceptor
from neuron_attribution_server.config import ConfigurationError, ServerConfig
from neuron_attribution_server.credentials import server_certificate
from neuron_attribution_server.exchange import terms
from neuron_attribution_server.hanging_up import hang_up
from neuron_attribution_server.interceptors import ErrorInterceptor
from neuron_attribution_server.live_metrics import LiveMetrics, Loaded
from neuron_attribution_server.metrics import Metrics
from neuron_attribution_server.metrics_endpoint import MetricsEndpoint
from neuron_attribution_server.patience import note_keepers
from neuron_attribution_server.result_cache import ResultCache
from neuron_attribution_server.rpc_metrics import RpcMetrics
from neuron_attribution_server.scheduler import Scheduler
from neuron_attribution_server.served_model import ServedModel
from neuron_attribution_server.servicer import AttributionServicer, Backend
from neuron_attribution_server.worker import ModelLoadError, Worker

if TYPE_CHECKING:
    from neuron_attribution_server.tracing import Tracing
    from neuron_attribution_server.web_gateway import WebGateway

SERVICES = (
    neuron_attribution_pb2.DESCRIPTOR.services_by_name["NeuronAttributionService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
SERVICE = SERVICES[0].full_name
LIVENESS = "liveness"
"""The name that health answers SERVING for as long as it answers at all: without a model, and while draining."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_CALLS = 1000  # on one connection, beside those that may wait in the queue; further ones wait on the caller's side
_LEAST_PING_MILLISECONDS = 10_000  # clients ping every 30 seconds; a lower bound above that would cut them off

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
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # unknown to the stubs
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
        self._live = LiveMetrics(config, worker, self._metrics.gpu_memory, expiry, self._terms)
        self._metrics.registry.register(self._live)
        self._metrics_endpoint: MetricsEndpoint | None = None
        self._web_gateway = _web_gateway(config)
        self._web: WebGateway | None = None
        self.address = ""
        """HOST:PORT that is listened on, once started."""
        self.health_address = ""
        """HOST:PORT of the health port, once started, if there is one."""
        self.metrics_address = ""
        """HOST:PORT of the metrics, once started, if they are served."""
        self.web_address = ""
        """HOST:PORT of the web page, once started, if it is served."""

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit status: 0 after a signal, 1 after a failure."""
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        try:
            return await self._run(stopping)
        except (ModelLoadError, _ListenError) as error:
            print(f"neuron-attribution serve: {error}", file=sys.stderr)
            return 1
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listen; every call but health and reflection is refused as unavailable until the model is loaded."""
        _log.info("configuration: %s", self._config)
        note_keepers(asyncio.get_running_loop())
        # The stock servicer starts as SERVING.
        await self._set_health(_NOT_SERVING)
        await self._health.set(LIVENESS, _SERVING)
        if self._tokens is not None and self._credentials is None:
            _log.warning("tokens are asked for without TLS: they cross the network for anyone on it to read")
        self._server = self._build_server()
        if self._config.reflection:
            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.address = _listen(self._server, self._config.listen, self._credentials)
        if self._config.metrics_listen is not None:
            self._serve_metrics(self._config.metrics_listen)
        if self._config.health_listen is not None:
            await self._start_health_server(self._config.health_listen)
        if self._web_gateway is not None and self._config.web is not None:
            await self._start_web(self._web_gateway, self._config.web)
        await self._server.start()

    async def load(self) -> None:
        """Load the model and serve. Raises ModelLoadError."""
        facts = await self._worker.start()
        model = await asyncio.to_thread(ServedModel, facts, self._config.limits(facts.maximum_tokens))
        scheduler = Scheduler(self._worker, self._config, facts.memory, BatchObserver(self._metrics, self._tracing))
        cache = ResultCache(self._config.cache_bytes)
        self._servicer.open(Backend(model, scheduler, cache))
        self._live.loaded = Loaded(facts, scheduler.queue, cache)
        await self._set_health(_SERVING)
        self._running = [asyncio.create_task(scheduler.run()), asyncio.create_task(self._follow_worker())]

    async def stop(self) -> None:
        """Refuse new calls, let running ones finish within the grace, and end the worker."""
        await self._drain()
        web = [] if self._web is None else [self._web.stop()]
        server = [] if self._server is None else [self._server.stop(self._config.grace)]
        await asyncio.gather(*web, *server)
        if self._health_server is not None:
            await self._health_server.stop(None)
        for task in self._running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._worker.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._metrics_endpoint is not None:
            await asyncio.to_thread(self._metrics_endpoint.close)

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
        await self._drain()
        await asyncio.wait((ended,), timeout=self._config.drain_delay)
        ended.cancel()
        return 0

    def _give_up(self) -> int:
        _log.error("no worker will come back; the server ends with exit status 1")
        self._servicer.close(UnavailableError("the worker has ended; try again later", reason="WORKER_GONE"))
        return 1

    def _build_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=self._interceptors(), options=self._options())
        add_service: Any = neuron_attribution_pb2_grpc.add_NeuronAttributionServiceServicer_to_server
        add_service(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    async def _start_health_server(self, listen: str) -> None:
        self._health_server = grpc.aio.server(interceptors=(self._calls,), options=self._options())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
        self.health_address = _listen(self._health_server, listen, None)
        await self._health_server.start()
        _log.info("health without TLS on %s", self.health_address)

    async def _start_web(self, gateway: type[WebGateway], listen: str) -> None:
        try:
            self._web = gateway(self._config, self._build_server(), self._tokens)
            await self._web.start(listen)
        except OSError as error:
            raise _ListenError(f"cannot serve the web page on {listen}: {error.strerror or error}") from None
        except (ConfigurationError, RuntimeError) as error:
            raise _ListenError(f"cannot serve the web page on {listen}: {error}") from None
        self.web_address = self._web.address
        scheme = "http" if self._credentials is None else "https"
        _log.info("web page on %s://%s", scheme, self.web_address)

    def _serve_metrics(self, listen: str) -> None:
        try:
            self._metrics_endpoint = MetricsEndpoint(self._metrics.registry, listen)
        except OSError as error:
            raise _ListenError(f"cannot serve metrics on {listen}: {error.strerror}") from None
        self.metrics_address = self._metrics_endpoint.address
        _log.info("metrics on http://%s/metrics", self.metrics_address)

    def _interceptors(self) -> tuple[grpc.aio.ServerInterceptor[Any, Any], ...]:
        if self._tokens is None:
            return self._calls, ErrorInterceptor(self._terms)
        opened = {health.SERVICE_NAME: self._config.open_health, reflection.SERVICE_NAME: self._config.open_reflection}
        open_services = [name for name, is_open in opened.items() if is_open]
        return self._calls, AuthenticationInterceptor(self._tokens, open_services), ErrorInterceptor(self._terms)

    def _options(self) -> tuple[tuple[str, int], ...]:
        return (
            ("grpc.max_receive_message_length", self._config.maximum_request_bytes),
            ("grpc.max_send_message_length", self._config.maximum_message_bytes),
            ("grpc.max_connection_age_ms", round(1000 * self._config.maximum_connection_age)),
            ("grpc.max_connection_age_grace_ms", round(1000 * self._config.connection_grace)),
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_concurrent_streams", self._config.queued_requests + _CALLS),
            # Else gRPC reads megabytes of each call ahead of whoever waits for its request.
            ("grpc.http2.bdp_probe", 0),
            # Two servers on one port would share its calls in silence.
            ("grpc.so_reuseport", 0),
        )

    async def _follow_worker(self) -> None:
        """Show the worker's health as the server's."""
        shown = True
        while True:
            while self._worker.is_live == shown:
                await self._worker.changed()
            shown = self._worker.is_live
            await self._set_health(_SERVING if shown else _NOT_SERVING)

    async def _drain(self) -> None:
        """Say NOT_SERVING for good, whatever the worker does."""
        self._live.draining = True
        await self._set_health(_NOT_SERVING)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        self._live.serving = status == _SERVING
        for service in ("", SERVICE):
            await self._health.set(service, _NOT_SERVING if self._live.draining else status)


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Listen; return HOST:PORT with the port that was taken."""
    host, _, _ = address.rpartition(":")
    try:
        if credentials is None:
            return f"{host}:{server.add_insecure_port(address)}"
        return f"{host}:{server.add_secure_port(address, credentials)}"
    except RuntimeError as error:
        raise _ListenError(f"cannot listen on {address}: {error}") from None


def _tracing(config: ServerConfig) -> Tracing | None:
    """What sends traces, if they are asked for; OpenTelemetry is an extra."""
    if config.trace_endpoint is None:
        return None
    try:
        from neuron_attribution_server.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"trace_endpoint needs {error.name}, which is not installed: "
            "pip install 'neuron-attribution[server,tracing]'"
        ) from None
    return Tracing(config.trace_endpoint, config.trace_ratio)


def _web_gateway(config: ServerConfig) -> type[WebGateway] | None:
    """What serves the web page, if it is asked for; its HTTP library is an extra."""
    if config.web is None:
        return None
    try:
        from neuron_attribution_server.web_gateway import WebGateway
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"web needs {error.name}, which is not installed: pip install 'neuron-attribution[server,web]'"
        ) from None
    return WebGateway


class _ListenError(Exception):
    """The address cannot be listened on."""
