"""Everything the server listens on: calls over gRPC, the web page, health and metrics, each where it is asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from neuron_attribution.v1 import neuron_attribution_pb2_grpc
from prometheus_client import CollectorRegistry

from neuron_attribution_server.front_end.endpoints.health import Health, HealthServicer
from neuron_attribution_server.front_end.endpoints.metrics import MetricsEndpoint
from neuron_attribution_server.front_end.endpoints.ports import ListenError, health_options, listen_on, service_options
from neuron_attribution_server.front_end.interceptors.calls import CallInterceptor
from neuron_attribution_server.front_end.interceptors.errors import ErrorInterceptor
from neuron_attribution_server.front_end.security.authentication import AuthenticationInterceptor
from neuron_attribution_server.front_end.security.reloading import Reloaded
from neuron_attribution_server.front_end.security.tokens import TokenTable
from neuron_attribution_server.front_end.service.servicer import AttributionServicer
from neuron_attribution_server.front_end.transfer.exchange import Terms
from neuron_attribution_server.front_end.web.gateway import WebGateway
from neuron_attribution_server.services import HEALTH, REFLECTION, SERVICE
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig

_LULL_SECONDS = 2.0
"""How long a server that stops takes calls that keep coming."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers whoever connects, and on which terms."""

    servicer: AttributionServicer
    health: Health
    calls: CallInterceptor
    terms: Terms
    credentials: grpc.ServerCredentials | None
    tokens: Reloaded[TokenTable] | None
    metrics: CollectorRegistry


class Ports:
    """The ports of one server. What is not asked for has no address and takes no time to stop."""

    def __init__(self, config: ServerConfig, answering: Answering) -> None:
        self._config = config
        self._answering = answering
        self._server: grpc.aio.Server | None = None
        self._health: grpc.aio.Server | None = None
        self._metrics: MetricsEndpoint | None = None
        self._web: WebGateway | None = None
        self.address = ""
        """HOST:PORT that is listened on, once started."""
        self.health_address = ""
        """HOST:PORT of the health port, once started, if there is one."""
        self.metrics_address = ""
        """HOST:PORT of the metrics, once started, if they are served."""
        self.web_address = ""
        """HOST:PORT of the web page, once started, if it is served."""

    async def start(self) -> None:
        """Listen on all of them. Raises ListenError."""
        config, answering = self._config, self._answering
        if answering.tokens is not None and answering.credentials is None:
            _log.warning("tokens are asked for without TLS: they cross the network for anyone on it to read")
        self._server = self._build_server()
        if config.reflection:
            reflection.enable_server_reflection((SERVICE, HEALTH, REFLECTION), self._server)
        self.address = listen_on(self._server, config.listen, answering.credentials)
        if config.metrics_listen is not None:
            self._serve_metrics(config.metrics_listen)
        if config.health_listen is not None:
            await self._start_health(config.health_listen)
        if config.web is not None:
            await self._start_web(config.web)
        await self._server.start()

    async def stop_calls(self, grace: float) -> None:
        """Take those that have come over gRPC, and then no more; what runs may end within so many seconds."""
        if self._server is not None:
            until = time.monotonic() + grace
            await self._answering.calls.lull(min(grace, _LULL_SECONDS))
            await self._server.stop(max(0.0, until - time.monotonic()))

    async def stop_web(self) -> None:
        """The same for the web page, within the configured grace."""
        if self._web is not None:
            await self._web.stop()

    async def stop_health(self) -> None:
        """Close the port for health alone, which answers until then."""
        if self._health is not None:
            await self._health.stop(None)

    async def stop_metrics(self) -> None:
        """Close the metrics."""
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)

    def _build_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=self._interceptors(), options=service_options(self._config))
        add_service: Any = neuron_attribution_pb2_grpc.add_NeuronAttributionServiceServicer_to_server
        add_service(self._answering.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._answering.health), server)
        return server

    def _interceptors(self) -> tuple[grpc.aio.ServerInterceptor[Any, Any], ...]:
        calls, tokens = self._answering.calls, self._answering.tokens
        errors = ErrorInterceptor(self._answering.terms)
        if tokens is None:
            return calls, errors
        opened = {HEALTH: self._config.open_health, REFLECTION: self._config.open_reflection}
        open_services = [name for name, is_open in opened.items() if is_open]
        return calls, AuthenticationInterceptor(tokens, open_services), errors

    def _serve_metrics(self, listen: str) -> None:
        try:
            self._metrics = MetricsEndpoint(self._answering.metrics, listen)
        except OSError as error:
            raise ListenError(f"cannot serve metrics on {listen}: {error.strerror}") from None
        self.metrics_address = self._metrics.address
        _log.info("metrics on http://%s/metrics", self.metrics_address)

    async def _start_health(self, listen: str) -> None:
        self._health = grpc.aio.server(interceptors=(self._answering.calls,), options=health_options())
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._answering.health), self._health)
        self.health_address = listen_on(self._health, listen, None)
        await self._health.start()
        _log.info("health without TLS on %s", self.health_address)

    async def _start_web(self, listen: str) -> None:
        try:
            self._web = WebGateway(self._config, self._build_server(), self._answering.tokens)
            await self._web.start(listen)
        except OSError as error:
            raise ListenError(f"cannot serve the web page on {listen}: {error.strerror or error}") from None
        except (ConfigurationError, RuntimeError) as error:
            raise ListenError(f"cannot serve the web page on {listen}: {error}") from None
        self.web_address = self._web.address
        scheme = "http" if self._answering.credentials is None else "https"
        _log.info("web page on %s://%s", scheme, self.web_address)
