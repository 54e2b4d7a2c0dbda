"""An OpenTelemetry collector, as far as a server that sends traces can tell: OTLP over gRPC on a real port."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived. Ids are hexadecimal digits, `links` the ids of spans, times in nanoseconds since 1970."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: frozenset
    attributes: dict
    is_error: bool
    begin: int
    end: int
    resource: dict

    @property
    def seconds(self):
        return (self.end - self.begin) / 1e9


class Collector(services.TraceServiceServicer):
    """Keeps the spans it is sent."""

    def __init__(self):
        self.spans = []
        self.endpoint = ""

    def Export(self, request, context):
        self.spans += [
            _read(span, _values(resource_spans.resource.attributes))
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        return messages.ExportTraceServiceResponse()

    def named(self, name):
        """The spans of a name, in the order of their beginning."""
        return sorted((span for span in list(self.spans) if span.name == name), key=lambda span: span.begin)


@contextmanager
def collecting():
    """A collector that listens."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _read(span, resource):
    return ReceivedSpan(
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=frozenset(link.span_id.hex() for link in span.links),
        attributes=_values(span.attributes),
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
        begin=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        resource=resource,
    )


def _values(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
