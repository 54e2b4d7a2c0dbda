"""Spans for OpenTelemetry, sent by OTLP: one for each call, its wait, its batch, and what the worker did for that.

    CALL (server, child of the caller's span)
    ├── queue           of every item that waited; linked to the batch
    └── batch           in the first of its calls; linked to all of them
        ├── forward
        └── scoring

Only this module imports OpenTelemetry, and it is imported only where traces are asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neuron_attribution_server.tasks.reports import BatchReport, PassReport
from neuron_attribution_server.tasks.tasks import Task

FLUSH_SECONDS = 5.0
"""How long the last spans may take to be sent when the server ends."""
_HEADERS = ("traceparent", "tracestate")
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""What the semantic conventions count as an error of a server's span."""


class TracedCall(Protocol):
    """A call that may have a span."""

    @property
    def span(self) -> Span | None:
        """Its span, whether or not it is sampled."""
        ...


class WaitedTask(Protocol):
    """A task of a batch that has waited for it."""

    @property
    def task(self) -> Task:
        """What was asked."""
        ...

    @property
    def enqueued(self) -> float:
        """Since when it waited, on the queue's clock."""
        ...

    @property
    def call(self) -> TracedCall | None:
        """The call it came with, if it came with one."""
        ...


class Tracing:
    """The spans of one server. `ratio` is the part of the traces that begin here which is sampled."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        self._propagator = TraceContextTextMapPropagator()
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio), resource=_resource(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("neuron_attribution_server", version("neuron-attribution"))

    def call_begins(self, path: str, metadata: Any) -> Span:  # noqa: ANN401 - gRPC's metadata, a tuple of pairs
        """The span of a call to /SERVICE/METHOD, under the caller's where the metadata name it."""
        name = path.removeprefix("/")
        service, _, method = name.partition("/")
        carrier = {key: value for key, value in metadata or () if key in _HEADERS}
        return self._tracer.start_span(
            name,
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )

    @staticmethod
    def call_ended(span: Span, code: grpc.StatusCode) -> None:
        """End a call's span with its status."""
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in _FAULTS:
            span.set_status(StatusCode.ERROR, code.name)
        span.end()

    def batch_begins(self, batch: Sequence[WaitedTask], started: float, now: int) -> Span | None:
        """The span of a batch that holds items of sampled calls.

        It began at `started` on the queue's clock, which was `now` in nanoseconds since 1970.
        """
        items = {item: item.call.span for item in batch if item.call is not None and item.call.span is not None}
        sampled = {item: span for item, span in items.items() if span.is_recording()}
        if not sampled:
            return None
        calls = list(dict.fromkeys(sampled.values()))
        span = self._tracer.start_span(
            "batch",
            set_span_in_context(calls[0], Context()),
            links=[Link(call.get_span_context()) for call in calls],
            start_time=now,
            attributes={
                "neuron_attribution.batch.requests": len(batch),
                "neuron_attribution.batch.tokens": sum(item.task.tokens for item in batch),
            },
        )
        for item, call in sampled.items():
            begin = now - round(1e9 * (started - item.enqueued))
            self._span("queue", call, begin, now, links=[Link(span.get_span_context())])
        return span

    def batch_reported(self, span: Span, report: BatchReport) -> None:
        """Put what a worker reports of a batch under the batch's span, which may have ended."""
        for each in report.passes:
            self._pass(span, each, report.device)

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        timer = threading.Timer(FLUSH_SECONDS, self._exporter.shutdown)
        timer.start()
        self._provider.shutdown()
        timer.cancel()

    def _pass(self, batch: Span, done: PassReport, device: str) -> None:
        begin = round(1e9 * done.started)
        middle = begin + round(1e9 * done.forward)
        self._span("forward", batch, begin, middle, {"neuron_attribution.device": device})
        seconds = {"neuron_attribution.bound_seconds": done.bound, "neuron_attribution.exact_seconds": done.exact}
        self._span("scoring", batch, middle, middle + round(1e9 * done.scoring), seconds)

    def _span(
        self,
        name: str,
        parent: Span,
        begin: int,
        end: int,
        attributes: Mapping[str, str | float] | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        """A span that is over already. Times in nanoseconds since 1970."""
        context = set_span_in_context(parent, Context())
        span = self._tracer.start_span(name, context, links=links, start_time=begin, attributes=attributes)
        span.end(end)


def _resource() -> Resource:
    """What the spans say of this server; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    own = {"service.name": "neuron-attribution", "service.version": version("neuron-attribution")}
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})
