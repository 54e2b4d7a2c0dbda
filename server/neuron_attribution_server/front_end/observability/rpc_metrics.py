"""Metrics of calls by the names and labels of go-grpc-prometheus, so that common dashboards and alerts fit."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from prometheus_client import CollectorRegistry, Counter, Histogram

from neuron_attribution_server.front_end.observability.metrics import SECONDS, Exemplar

UNKNOWN = "unknown"
_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


def code_name(code: grpc.StatusCode) -> str:
    """A status code as Go spells it, which is what dashboards look for."""
    special = {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}
    return special.get(code) or code.name.title().replace("_", "")


class MethodMetrics:
    """The series of one method, made once."""

    def __init__(self, started: Counter, handled: Counter, seconds: Histogram, labels: tuple[str, str, str]) -> None:
        self.name = labels[2]
        """The method's name without its service."""
        self._started = started.labels(*labels)
        self._handled = {code: handled.labels(*labels, code_name(code)) for code in grpc.StatusCode}
        self._seconds = seconds.labels(*labels)

    def started(self) -> None:
        """Count a call that begins."""
        self._started.inc()

    def handled(self, code: grpc.StatusCode, seconds: float, exemplar: Exemplar) -> None:
        """Count a call that has ended."""
        self._handled[code].inc()
        self._seconds.observe(seconds, exemplar)


class RpcMetrics:
    """The series of every method of some services; all other methods share those of an unknown one."""

    def __init__(self, registry: CollectorRegistry, services: Iterable[ServiceDescriptor]) -> None:
        families = (
            Counter("grpc_server_started_total", "Calls that were begun.", _LABELS, registry=registry),
            Counter(
                "grpc_server_handled_total",
                "Calls that have ended, by status.",
                (*_LABELS, "grpc_code"),
                registry=registry,
            ),
            Histogram(
                "grpc_server_handling_seconds",
                "Time from a call's request to its status.",
                _LABELS,
                buckets=SECONDS,
                registry=registry,
            ),
        )
        self._methods = {
            f"/{service.full_name}/{method.name}": MethodMetrics(*families, _labels(service, method))
            for service in services
            for method in service.methods
        }
        self._unknown = MethodMetrics(*families, ("unary", UNKNOWN, UNKNOWN))

    def of(self, path: str) -> MethodMetrics:
        """The metrics of a method by its path, /SERVICE/METHOD."""
        return self._methods.get(path, self._unknown)


def _labels(service: ServiceDescriptor, method: MethodDescriptor) -> tuple[str, str, str]:
    return _TYPES[method.client_streaming, method.server_streaming], service.full_name, method.name
