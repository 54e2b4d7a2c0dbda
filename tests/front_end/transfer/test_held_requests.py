"""Callers of a server process who send more than it could hold, or by halves: what comes in is counted and bounded."""

import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

import grpc
import pytest
from neuron_attribution import Client, ResourceExhaustedError
from neuron_attribution.transport.status import from_item_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.transfer import lent_room
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import PROMPT, FakeEngine
from service.greedy import (
    CHANNEL,
    MIB,
    item,
    largest_growth,
    long_request,
    open_stream,
    path,
    serving,
)
from service.raw_http2 import DATA, RawPeer
from service.servers import PATIENCE, attribution, eventually, failure, running_server

pytestmark = pytest.mark.process

KEY_BYTES = 4_000_000


@pytest.fixture(scope="module")
def served():
    with serving() as server:
        yield server
        assert server.is_clean()


def test_keys_are_bounded_before_they_are_repeated(served):
    """Eight items with keys of 4 MB, to be answered token by token: they are refused by name, under less of the key."""
    request = attribution(" is", completion=messages.Completion(text="x" * 9))
    items = [item("k" * KEY_BYTES, request, each_token=True).SerializeToString() for _ in range(8)]
    with RawPeer(served.address) as peer:
        stream = []
        begin = partial(open_stream, peer, items, stream)
        assert largest_growth(served, begin, lambda: peer.ended(stream[0])) < 150
    with served.stub() as stub:
        [answer] = stub.AttributeStream(iter([item("é" * 600, request)]), timeout=PATIENCE)
    error = from_item_error(answer.error)
    assert [violation.field for violation in error.violations] == ["key"]
    assert answer.key == "é" * 512
    assert "1200 bytes" in error.message


def test_requests_wait_as_the_bytes_they_came_in(served):
    """Thirty items of half a million neurons each: 2 MB as they come, thirteen times that when they are read."""
    request = long_request(neurons=[messages.Neuron(ffn=messages.FfnNeuron())] * 500_000)
    items = [item(str(number), request) for number in range(30)]
    with served.stub() as stub:
        answers = []
        begin = partial(_read_in_a_thread, stub.AttributeStream(iter(items), timeout=PATIENCE), answers)
        growth = largest_growth(served, begin, lambda: len(answers) == len(items))
    assert len(answers) == len(items)
    assert all(answer.error.reason == "INVALID_ARGUMENT" for answer in answers)
    assert growth < 200


def _read_in_a_thread(call, answers):
    threading.Thread(target=lambda: answers.extend(call), daemon=True).start()


def test_half_sent_requests_are_counted_and_given_up(served):
    """40 requests of nearly 4 MB, of which the last bytes never come: no more are taken than there is room for."""
    data = messages.AttributeRequest(model="m" * 4_000_000).SerializeToString()
    with HalfPeer(served.address) as peer:
        streams = []

        def send():
            for _ in range(40):
                streams.append(peer.open(path("Attribute"), end=False))
                threading.Thread(target=_send_most, args=(peer, streams[-1], data), daemon=True).start()

        growth = largest_growth(served, send, lambda: any(map(peer.ended, streams)))
        assert served.added("held_request_bytes") <= 32 * MIB
        assert eventually(lambda: served.added("rejected_total", reason="REQUEST_TOO_SLOW") >= 1)
        assert growth < 32 + 40, "the budget, and what gRPC reads ahead of those that wait"
        with Client(served.address) as client:  # which comes back when it is told to
            assert client.attribute(PROMPT).explanations


class HalfPeer(RawPeer):
    """Sends all but the end of its messages."""

    def send_most(self, stream, message):
        frame = b"\0" + len(message).to_bytes(4) + message[:-1000]
        while frame:
            size = self._room(stream, min(len(frame), 16_384))
            self._frame(DATA, 0, stream, frame[:size])
            frame = frame[size:]


def _send_most(peer, stream, data):
    with suppress(OSError):
        peer.send_most(stream, data)


def test_room_that_is_awaited_is_taken_back_from_who_sends_nothing(monkeypatch):
    """Two streams that say nothing have all the room there is; the older one makes room, with a reason to come back."""
    monkeypatch.setattr(lent_room, "LEAST_LENDING_SECONDS", 0.5)
    settings = {"maximum_request_bytes": MIB, "held_request_bytes": 2 * MIB, "stream_window": 1}
    with running_server(ThreadWorker(engine := FakeEngine()), **settings) as server, engine:
        assert server.loaded.wait(PATIENCE)
        older, younger = (_Dialogue(server.stub) for _ in range(2))
        assert server.attribute().explanations
        error, _ = failure(lambda: next(older.answers))
        assert isinstance(error, ResourceExhaustedError)
        assert (error.reason, error.retry_after) == ("HELD_REQUESTS", 1.0)
        younger.ask(item("asked", attribution()))
        assert next(younger.answers).key == "asked"
        younger.end()


class _Dialogue:
    """A stream whose items are sent one by one."""

    def __init__(self, stub):
        self._items = SimpleQueue()
        self.answers = stub.AttributeStream(iter(self._items.get, None), timeout=PATIENCE)
        self.ask(item("first", attribution()))
        assert next(self.answers).key == "first"

    def ask(self, item):
        self._items.put(item)

    def end(self):
        self._items.put(None)
        assert list(self.answers) == []


def test_what_is_no_call_is_told_so(served):
    """A call of one request that sends none."""
    with grpc.insecure_channel(served.address, CHANNEL) as channel:
        call = channel.stream_unary(path("Attribute"))
        error, status = failure(lambda: call(iter(()), timeout=PATIENCE))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MALFORMED_MESSAGE"
