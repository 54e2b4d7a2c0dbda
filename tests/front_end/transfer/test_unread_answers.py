"""Callers of a server process who do not read: its memory is bounded, they are hung up on, and no error is counted."""

import threading
from functools import partial
from hashlib import sha256

import grpc
import pytest
from neuron_attribution import Client, ResourceExhaustedError
from service.faulty_engines import LONG_ANSWER
from service.greedy import (
    CHANNEL,
    COPIES,
    METHODS,
    MIB,
    PATIENT_SECONDS,
    item,
    largest_growth,
    long_request,
    open_stream,
    others_are_answered,
    path,
    serving,
)
from service.raw_http2 import RawPeer
from service.servers import PATIENCE, attribution, eventually, failure

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def served():
    with serving() as server:
        yield server
        assert server.is_clean()


def test_a_long_cached_answer_is_not_copied_for_each_item_that_asks_for_it(served):
    """64 small items: what is not read is one answer as it is sent, whatever else waits behind it."""
    with RawPeer(served.address) as peer:
        items = [item(str(number)).SerializeToString() for number in range(64)]
        stream = []
        begin = partial(open_stream, peer, items, stream)
        assert largest_growth(served, begin, lambda: peer.ended(stream[0])) < 150
        assert others_are_answered(served)


@pytest.mark.parametrize("method", METHODS)
def test_who_reads_nothing_is_hung_up_on(served, method):
    ended = served.ended(method, "Canceled")
    request = long_request() if method == "Attribute" else item()
    with RawPeer(served.address) as peer:
        stream = peer.open(path(method), request.SerializeToString(), end=False)
        assert eventually(lambda: served.added("unread_bytes") >= LONG_ANSWER), "it is counted"
        assert others_are_answered(served)
        assert eventually(lambda: peer.ended(stream))
    assert eventually(lambda: served.ended(method, "Canceled") == ended + 1)
    assert served.added("unread_calls_total") >= 1
    assert eventually(lambda: served.added("unread_bytes") == 0)
    assert served.is_clean()


def test_the_memory_of_answers_that_nobody_read_is_free_for_others(served):
    """It does not add up: a hundred megabytes each time."""
    held = []
    for _ in range(2):
        with RawPeer(served.address) as peer:
            streams = [peer.open(path("Attribute"), long_request().SerializeToString()) for _ in range(4)]
            assert eventually(lambda: served.added("unread_bytes") >= 4 * 2 * LONG_ANSWER)
            held.append(served.mebibytes)
            for stream in streams:
                assert eventually(lambda stream=stream: others_are_answered(served) and peer.ended(stream))
    assert held[1] - held[0] < 50


def test_who_alone_calls_and_reads_nothing_is_hung_up_on_too(served):
    """gRPC remembers the last call that came; no other call may help it to forget."""
    with RawPeer(served.address) as peer:
        stream = peer.open(path("AttributeStream"), item().SerializeToString(), end=False)
        assert eventually(lambda: peer.ended(stream))


def test_hanging_up_leaves_the_other_calls_of_the_connection_alone(served):
    with served.stub() as stub:
        unread = stub.AttributeStream(iter([item(), item()]), timeout=PATIENCE)
        hung_up = served.added("unread_calls_total")
        while served.added("unread_calls_total") == hung_up:
            assert stub.Attribute(attribution(), timeout=PATIENCE).explanations
        assert stub.Attribute(attribution(), timeout=PATIENCE).explanations
        _, status = failure(lambda: list(unread))
        assert status.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ["reset", "disconnected"])
def test_a_caller_who_goes_while_an_answer_is_written_has_cancelled(served, method, ending):
    """No error of the server's, whatever gRPC raises then; several at a time, since it differs."""
    ended = served.ended(method, "Canceled")
    request = long_request() if method == "Attribute" else item()
    with grpc.insecure_channel(served.address, CHANNEL) as channel:
        kind = channel.unary_stream if method == "Attribute" else channel.stream_stream
        data = request.SerializeToString()
        calls = [kind(path(method))(data if method == "Attribute" else _open(data)) for _ in range(3)]
        assert eventually(lambda: served.added("unread_bytes") >= 3 * COPIES[method] * LONG_ANSWER)
        for call in calls if ending == "reset" else ():
            call.cancel()
        if ending == "reset":
            assert eventually(lambda: served.ended(method, "Canceled") == ended + 3)
    assert eventually(lambda: served.ended(method, "Canceled") == ended + 3)
    assert eventually(lambda: served.added("unread_bytes") == 0)
    assert served.is_clean()


def _open(*items):
    """Items of a stream that never ends."""
    yield from items
    threading.Event().wait(PATIENCE)


def test_what_the_budget_has_no_room_for_waits_or_is_refused():
    """A stream waits for the room that another call holds; a single call is told when to come back."""
    with serving(transfer_timeout=60.0, unread_bytes=2 * LONG_ANSWER + MIB) as server, server.stub() as stub:
        with RawPeer(server.address) as peer:
            peer.open(path("Attribute"), long_request().SerializeToString())
            assert eventually(lambda: server.added("unread_bytes") >= LONG_ANSWER)
            error, _ = failure(lambda: stub.Attribute(long_request(), timeout=PATIENCE))
            assert isinstance(error, ResourceExhaustedError)
            assert error.reason == "UNREAD_ANSWERS"
            assert error.retry_after
            assert server.added("rejected_total", reason="UNREAD_ANSWERS") == 1
            assert stub.Attribute(attribution(), timeout=PATIENCE).explanations, "what is small has room"
            answers = stub.AttributeStream(iter([item("short", attribution()), item("long")]), timeout=PATIENCE)
            assert next(answers).key == "short"
        assert [answer.key for answer in answers] == ["long"]


def test_the_budgets_are_told(served):
    with Client(served.address) as client:
        limits = client.get_model().limits
    assert (limits.key_bytes, limits.unread_bytes, limits.held_request_bytes) == (1024, 256 * MIB, 32 * MIB)
    assert (limits.transfer_timeout, limits.call_unread_bytes) == (PATIENT_SECONDS, 192 * MIB)


def test_a_tenant_that_reads_nothing_leaves_the_others_their_room(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{tenant} {sha256(tenant.encode()).hexdigest()}\n" for tenant in ("alice", "bob")))
    alice, bob = ([("authorization", f"Bearer {tenant}")] for tenant in ("alice", "bob"))
    settings = {"token_file": str(tokens), "transfer_timeout": 60.0, "unread_bytes": 5 * 2 * LONG_ANSWER}
    with serving(token="bob", **settings) as server, server.stub() as stub:
        unread = [stub.AttributeStream(iter([item()]), metadata=alice)]
        assert eventually(lambda: server.added("unread_bytes") >= 3 * LONG_ANSWER)
        unread.append(stub.AttributeStream(iter([item()]), metadata=alice))
        error, _ = failure(lambda: stub.Attribute(long_request(), timeout=PATIENCE, metadata=alice))
        assert error.reason == "UNREAD_ANSWERS"
        assert stub.Attribute(long_request(), timeout=PATIENCE, metadata=bob).explanations
        assert [next(call).key for call in unread] == ["k", "k"], "the second had waited for the first"
