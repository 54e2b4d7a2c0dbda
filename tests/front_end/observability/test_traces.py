"""Traces, as a collector gets them from a real server on a real port."""

import asyncio
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from neuron_attribution import AsyncClient, Client, UnavailableError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.observability import tracing
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.services import SERVICE
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig, read_config
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from service.collector import collecting
from service.demo_server import serving
from service.fakes import PROMPT, FakeEngine
from service.scraping import OPENMETRICS, PREFIX, Scrape, free_address
from service.servers import (
    PATIENCE,
    attribution,
    eventually,
    failure,
    listening_address,
    running_server,
    server_process,
)

pytestmark = pytest.mark.process

CALL = f"{SERVICE}/Attribute"
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("test")
SAMPLED, UNSAMPLED = (f"00-{'a' * 32}-{'b' * 16}-{flags}" for flags in ("01", "00"))


@pytest.fixture
def collector():
    with collecting() as collector:
        yield collector


@contextmanager
def traced(collector, engine=None, **settings):
    """A ready server in a thread that sends its traces; the last of them when it ends."""
    engine = engine or FakeEngine()
    settings = {"trace_endpoint": collector.endpoint, "cache_bytes": 0, **settings}
    with running_server(ThreadWorker(engine), **settings) as server, engine:
        assert server.loaded.wait(PATIENCE)
        yield server


def test_a_call_of_the_demo_model_is_one_trace_that_began_with_the_caller(collector, monkeypatch):
    """From the client's span to what the worker process did, with the times that the answer gives."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with serving("--trace-endpoint", collector.endpoint) as (address, _), Client(address, timeout=PATIENCE) as client:
        with TRACER.start_as_current_span("caller") as caller:
            result = client.attribute(PROMPT)
        assert eventually(lambda: len(collector.spans) == 5)
    ours = caller.get_span_context()
    [call], [queue], [batch], [forward], [scoring] = map(
        collector.named, (CALL, "queue", "batch", "forward", "scoring")
    )
    assert {span.trace for span in collector.spans} == {format(ours.trace_id, "032x")}
    assert call.parent == format(ours.span_id, "016x")
    assert [span.parent for span in (queue, batch, forward, scoring)] == [call.id, call.id, batch.id, batch.id]
    assert (queue.links, batch.links) == ({batch.id}, {call.id})
    assert call.kind == Span.SPAN_KIND_SERVER
    assert call.attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Attribute",
        "rpc.grpc.status_code": 0,
    }
    assert batch.attributes == {
        "neuron_attribution.batch.requests": 1,
        "neuron_attribution.batch.tokens": len(result.tokens),
    }
    assert forward.attributes == {"neuron_attribution.device": "cpu"}
    assert 0 < sum(scoring.attributes.values()) < scoring.seconds
    assert call.begin <= queue.begin <= queue.end <= batch.begin <= forward.begin <= forward.end == scoring.begin
    assert scoring.end <= batch.end <= call.end
    timings = result.timings
    assert queue.seconds == pytest.approx(timings.queue, abs=1e-3)
    assert forward.seconds == pytest.approx(timings.forward, rel=1e-4)
    assert scoring.seconds == pytest.approx(timings.scoring, rel=1e-4)
    assert call.resource["service.name"] == "neuron-attribution"
    assert call.resource["deployment.environment.name"] == "test"


def test_calls_of_different_traces_share_a_batch_that_is_linked_to_both(collector):
    engine = FakeEngine()

    async def scenario(address):
        async with AsyncClient(address, timeout=PATIENCE) as client:
            first = asyncio.create_task(client.attribute(" of"))
            await asyncio.to_thread(engine.started.wait, PATIENCE)
            pair = []
            for text in (" Rome", " Paris"):
                with TRACER.start_as_current_span("caller"):
                    pair.append(asyncio.create_task(client.attribute(text)))
            await asyncio.sleep(0.5)  # by then both wait
            engine.released.set()
            results = await asyncio.gather(first, *pair)
            assert [result.timings.batch_requests for result in results] == [1, 2, 2]

    with traced(collector, engine) as server:
        engine.hold()
        asyncio.run(scenario(server.address))
    alone, *pair = collector.named(CALL)
    assert len({alone.trace, *(call.trace for call in pair)}) == 3
    first, shared = collector.named("batch")
    assert (first.parent, first.links) == (alone.id, {alone.id})
    assert shared.parent in {call.id for call in pair}
    assert shared.links == {call.id for call in pair}
    waits = {queue.parent: queue for queue in collector.named("queue")}
    assert [waits[call.id].trace for call in pair] == [call.trace for call in pair]
    assert all(waits[call.id].links == {shared.id} for call in pair)
    assert all(waits[call.id].seconds > 0.3 for call in pair)
    assert [span.parent for span in collector.named("scoring")] == [first.id, shared.id]


def test_the_items_of_a_stream_wait_within_its_call(collector):
    with traced(collector) as server:
        items = [messages.AttributeStreamRequest(key=str(n), request=attribution(" of")) for n in range(3)]
        assert len(list(server.stub.AttributeStream(iter(items), timeout=PATIENCE))) == 3
    [call] = collector.named(f"{SERVICE}/AttributeStream")
    assert [queue.parent for queue in collector.named("queue")] == [call.id] * 3
    batches = collector.named("batch")
    assert {link for queue in collector.named("queue") for link in queue.links} == {batch.id for batch in batches}
    assert all(batch.links == {call.id} for batch in batches)


def test_the_caller_decides_whether_its_trace_is_sampled_and_the_ratio_about_the_others(collector):
    with traced(collector, trace_ratio=0.0) as server:
        server.attribute()
        server.attribute(metadata=(("traceparent", UNSAMPLED),))
        server.attribute(metadata=(("traceparent", "nonsense"),))
        server.attribute(metadata=(("traceparent", SAMPLED),))
    assert {span.trace for span in collector.spans} == {"a" * 32}
    assert len(collector.spans) == 5
    [call] = collector.named(CALL)
    assert call.parent == "b" * 16


def test_an_unsampled_caller_is_not_overruled(collector):
    with traced(collector, trace_ratio=1.0) as server:
        server.attribute(metadata=(("traceparent", UNSAMPLED),))
    assert collector.spans == []


def test_failures_are_shown_with_their_status_and_health_is_not_traced(collector, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("")
    with traced(collector, token_file=str(tokens)) as server:
        failure(server.attribute)
        server.health()
        failure(lambda: server.channel.unary_unary("/nobody.Serves/This")(b"", timeout=PATIENCE))
    [refused] = collector.spans
    assert (refused.name, refused.attributes["rpc.grpc.status_code"], refused.is_error) == (CALL, 16, False)


def test_a_fault_of_the_server_is_an_error(collector):
    with traced(collector) as server:
        failure(lambda: server.attribute(attribution(" crash")))
    [call] = collector.named(CALL)
    assert (call.attributes["rpc.grpc.status_code"], call.is_error) == (13, True)
    assert collector.named("forward") == []
    assert len(collector.named("batch")) == 1


def test_metrics_lead_to_sampled_traces(collector):
    with traced(collector, metrics_listen="localhost:0") as server:
        server.attribute(metadata=(("traceparent", UNSAMPLED),))
        assert "trace_id" not in Scrape(server.metrics_address, accept=OPENMETRICS).text
        server.attribute(metadata=(("traceparent", SAMPLED),))
        lines = Scrape(server.metrics_address, accept=OPENMETRICS).text.splitlines()
        led = {line.partition("_bucket")[0] for line in lines if f'trace_id="{"a" * 32}"' in line}
        assert led == {"grpc_server_handling_seconds", PREFIX + "queue_wait_seconds"}
        assert "trace_id" not in Scrape(server.metrics_address).text


def test_a_worker_process_that_dies_leaves_a_batch_without_a_forward_pass(collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with server_process(trace_endpoint=collector.endpoint, restarts=0) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        with Client(address, timeout=PATIENCE) as client, pytest.raises(UnavailableError):
            client.attribute(" die")
        assert eventually(lambda: collector.named(CALL))
    assert collector.named("batch")
    assert collector.named("forward") == []


def test_a_collector_that_is_not_there_harms_neither_calls_nor_the_end(monkeypatch):
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.2)
    engine = FakeEngine()
    with running_server(ThreadWorker(engine), trace_endpoint=f"http://{free_address()}") as server, engine:
        assert server.loaded.wait(PATIENCE)
        assert server.attribute().explanations
        ending = time.monotonic()
    assert time.monotonic() - ending < 8, "less than the exporter's own 10 seconds"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "neuron_attribution_server.front_end.observability.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    config = ServerConfig(model="fake", trace_endpoint="http://localhost:4317")
    with pytest.raises(ConfigurationError, match=r"pip install 'neuron-attribution\[server,tracing\]'"):
        Application(config, ThreadWorker(FakeEngine()))


def test_a_wrong_endpoint_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="--trace-endpoint: 'localhost:4317' is not http://HOST:PORT"):
        read_config({"model": "demo", "trace_endpoint": "localhost:4317"}, {})


WITHOUT = """
import sys
from neuron_attribution import Client
with Client(sys.argv[1]) as client:
    client.attribute(sys.argv[2])
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""


def test_neither_client_nor_server_loads_opentelemetry_by_itself():
    with server_process() as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        subprocess.run([sys.executable, "-c", WITHOUT, address, PROMPT], check=True, timeout=PATIENCE)
    script = "import sys, neuron_attribution_server.app; assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)
