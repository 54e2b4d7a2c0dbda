"""Calls are counted by method and status, as gRPC's own libraries in other languages count them."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.interceptors.calls import status_of
from neuron_attribution_server.front_end.observability.rpc_metrics import code_name
from neuron_attribution_server.services import SERVICE
from service.fakes import FakeEngine
from service.scraping import Watched
from service.servers import (
    PATIENCE,
    attribution,
    failure,
    measured,
)

pytestmark = pytest.mark.process

RPC = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Attribute"}


def test_calls_are_counted_by_method_and_status():
    with measured() as server:
        added = Watched(server.metrics_address)
        server.attribute()
        failure(lambda: server.attribute(attribution("")))
        failure(lambda: server.channel.unary_unary("/nobody.Serves/This")(b"", timeout=PATIENCE))
        server.health()
        failure(lambda: server.health("nobody"))
        health = {"grpc_type": "unary", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Check"}
        unknown = {"grpc_type": "unary", "grpc_service": "unknown", "grpc_method": "unknown"}
        for labels, codes in (
            (RPC, {"OK": 1, "InvalidArgument": 1}),
            (health, {"OK": 1, "NotFound": 1}),
            (unknown, {"Unimplemented": 1}),
        ):
            calls = sum(codes.values())
            assert added("grpc_server_started_total", **labels) == calls
            assert added.reaches(calls, "grpc_server_handling_seconds_count", **labels)
            seen = {code: added("grpc_server_handled_total", grpc_code=code, **labels) for code in ALL_CODES}
            assert {code: count for code, count in seen.items() if count} == codes


ALL_CODES = [code_name(code) for code in grpc.StatusCode]


def test_codes_are_spelt_as_go_spells_them():
    assert set(ALL_CODES) == {
        *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
        *("PermissionDenied", "Unauthenticated", "ResourceExhausted", "FailedPrecondition", "Aborted"),
        *("Unimplemented", "Internal", "Unavailable", "DataLoss", "OutOfRange"),
    }


def test_cancelled_late_and_failing_calls_are_counted():
    engine = FakeEngine()
    with measured(engine) as server:
        added = Watched(server.metrics_address)
        engine.hold()
        calls = [server.stub.Attribute.future(attribution(text), timeout=PATIENCE) for text in (" of", " Rome")]
        assert engine.started.wait(PATIENCE)
        assert added.reaches(2, "grpc_server_started_total", **RPC)
        assert calls[1].cancel()
        failure(lambda: server.stub.Attribute(attribution(" is"), timeout=1.0))
        engine.released.set()
        assert calls[0].result().explanations
        failure(lambda: server.attribute(attribution(" crash")))
        for code in ("Canceled", "DeadlineExceeded", "OK", "Internal"):
            assert added.reaches(1, "grpc_server_handled_total", grpc_code=code, **RPC), code
        assert added("rejected_total", reason="DEADLINE_EXCEEDED") == 1


class Remaining:
    """What the status of a call without one depends on."""

    def __init__(self, seconds, code=None):
        self.time_remaining = lambda: seconds
        self.code = lambda: code


@pytest.mark.parametrize(
    ("error", "context", "code"),
    [
        (None, Remaining(None), grpc.StatusCode.OK),
        (None, Remaining(5.0, grpc.StatusCode.NOT_FOUND), grpc.StatusCode.NOT_FOUND),
        (asyncio.CancelledError(), Remaining(None), grpc.StatusCode.CANCELLED),
        (asyncio.CancelledError(), Remaining(5.0), grpc.StatusCode.CANCELLED),
        (asyncio.CancelledError(), Remaining(0.01), grpc.StatusCode.DEADLINE_EXCEEDED),
        (GeneratorExit(), Remaining(0), grpc.StatusCode.DEADLINE_EXCEEDED),
        (KeyError(), Remaining(0), grpc.StatusCode.UNKNOWN),
    ],
)
def test_how_a_call_ended_is_told_from_what_is_left(error, context, code):
    assert status_of(error, context) is code


def test_streams_are_counted_and_watched_while_they_run():
    with measured() as server:
        added = Watched(server.metrics_address)
        items = [messages.AttributeStreamRequest(key=str(n), request=attribution(" of")) for n in range(3)]
        assert len(list(server.stub.AttributeStream(iter(items), timeout=PATIENCE))) == 3
        stream = {"grpc_type": "bidi_stream", "grpc_service": SERVICE, "grpc_method": "AttributeStream"}
        assert added.reaches(1, "grpc_server_handled_total", grpc_code="OK", **stream)
        watch = {"grpc_type": "server_stream", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Watch"}
        watching = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        next(watching)
        assert added("grpc_server_started_total", **watch) == 1
        assert sum(added("grpc_server_handled_total", grpc_code=code, **watch) for code in ALL_CODES) == 0
        watching.cancel()
        assert added.reaches(1, "grpc_server_handled_total", grpc_code="Canceled", **watch)


def test_calls_without_a_token_are_counted_under_their_own_method(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {'0' * 64}\n")
    with measured(token_file=str(tokens)) as server:
        added = Watched(server.metrics_address)
        failure(server.attribute)
        failure(lambda: server.attribute(metadata=(("authorization", "Bearer wrong"),)))
        assert added.reaches(2, "grpc_server_handled_total", grpc_code="Unauthenticated", **RPC)
        assert [added("rejected_total", reason=reason) for reason in ("TOKEN_MISSING", "TOKEN_INVALID")] == [1, 1]


def test_the_health_port_is_counted_too():
    with measured(health_listen="localhost:0") as server, grpc.insecure_channel(server.health_address) as channel:
        added = Watched(server.metrics_address)
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        labels = {"grpc_type": "unary", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Check"}
        assert added("grpc_server_handled_total", grpc_code="OK", **labels) == 1
