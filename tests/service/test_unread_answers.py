"""Callers of a server process who do not read, or send by halves: its memory is bounded, and they are hung up on."""

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import grpc
import psutil
import pytest
from neuron_attribution import Client, ResourceExhaustedError
from neuron_attribution.status import from_item_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.app import SERVICE
from service.faulty_engines import LONG_ANSWER, TALK
from service.raw_http2 import DATA, RawPeer
from service.scraping import Watched, free_address
from service.servers import PATIENCE, attribution, eventually, failure, listening_address, server_process

MIB = 2**20
PATIENT_SECONDS = 1.0
KEYS_BYTES = 4_000_000
CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.bdp_probe", 0),  # else it may take megabytes that nobody has asked for
)
COPIES = {"Attribute": 2, "AttributeStream": 3}
SETTINGS = {
    "module": "faulty_engines",
    "log_format": "text",
    "transfer_timeout": PATIENT_SECONDS,
    "unread_bytes": 256 * MIB,
    "held_request_bytes": 32 * MIB,
}


@dataclass
class Served:
    """A server process, its address, what its metrics gained, and what it has logged."""

    process: object
    address: str
    added: Watched
    log: list[str]

    @property
    def mebibytes(self):
        return psutil.Process(self.process.pid).memory_info().rss // MIB

    @contextmanager
    def stub(self):
        with grpc.insecure_channel(self.address, CHANNEL) as channel:
            yield services.NeuronAttributionServiceStub(channel)

    def is_clean(self):
        """Whether no call has failed by the server's fault, and nothing looks so in the log."""
        text = "".join(self.log)
        counted = [self.ended(method, code) for method in METHODS for code in ("Internal", "Unknown")]
        return not any(counted) and "Traceback" not in text and "internal" not in text.lower()

    def ended(self, method, code):
        labels = {"grpc_type": METHODS[method], "grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
        return self.added("grpc_server_handled_total", **labels)


METHODS = {"Attribute": "unary", "AttributeStream": "bidi_stream"}


@contextmanager
def serving(**settings):
    metrics = free_address()
    with server_process("make_talkative_engine", metrics_listen=metrics, **SETTINGS | settings) as process:
        address, log = listening_address(process), []
        assert process.stdout.readline().startswith("ready: ")
        threading.Thread(target=lambda: log.extend(process.stderr), daemon=True).start()
        with Client(address) as client:
            client.attribute(LONG)  # from now on it is in the cache
        yield Served(process, address, Watched(metrics), log)


@pytest.fixture(scope="module")
def served():
    with serving() as server:
        yield server
        assert server.is_clean()


LONG = (1, TALK)


def long_request(**fields):
    prompt = messages.Prompt(token_ids=messages.TokenIds(ids=LONG))
    return messages.AttributeRequest(prompt=prompt, **fields)


def item(key="k", request=None, **fields):
    return messages.AttributeStreamRequest(key=key, request=request or long_request(), **fields)


def path(method):
    return f"/{SERVICE}/{method}"


def largest_growth(server, begin, until):
    """The mebibytes that the front end comes to hold beyond those of before, from `begin()` on."""
    before, largest, deadline = server.mebibytes, 0, time.monotonic() + PATIENCE
    begin()
    while not until() and time.monotonic() < deadline:
        largest = max(largest, server.mebibytes - before)
        time.sleep(0.02)
    return largest


def _open_stream(peer, items, opened):
    opened.append(peer.open(path("AttributeStream"), *items, end=False))


def others_are_answered(server):
    with server.stub() as stub:
        return bool(stub.Attribute(attribution(), timeout=PATIENCE).explanations)


def test_a_long_cached_answer_is_not_copied_for_each_item_that_asks_for_it(served):
    """64 small items: what is not read is one answer as it is sent, whatever else waits behind it."""
    with RawPeer(served.address) as peer:
        items = [item(str(number)).SerializeToString() for number in range(64)]
        stream = []
        begin = partial(_open_stream, peer, items, stream)
        assert largest_growth(served, begin, lambda: peer.ended(stream[0])) < 150
        assert others_are_answered(served)


def test_keys_are_bounded_before_they_are_repeated(served):
    """Eight items with keys of 4 MB, to be answered token by token: they are refused by name, under less of the key."""
    request = attribution(" is", completion=messages.Completion(text="x" * 9))
    items = [item("k" * KEYS_BYTES, request, each_token=True).SerializeToString() for _ in range(8)]
    with RawPeer(served.address) as peer:
        stream = []
        begin = partial(_open_stream, peer, items, stream)
        assert largest_growth(served, begin, lambda: peer.ended(stream[0])) < 150
    with served.stub() as stub:
        [answer] = stub.AttributeStream(iter([item("é" * 600, request)]), timeout=PATIENCE)
    error = from_item_error(answer.error)
    assert [violation.field for violation in error.violations] == ["key"]
    assert answer.key == "é" * 512
    assert "1200 bytes" in error.message


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
        assert served.added("rejected_total", reason="REQUEST_TOO_SLOW") >= 1
        assert growth < 32 + 40, "the budget, and what gRPC reads ahead of those that wait"
        assert others_are_answered(served)


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
