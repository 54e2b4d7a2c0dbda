"""Health on real servers: it follows the worker, and whoever asks and does not read holds it up for nobody."""

import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution_server.front_end.endpoints import health
from neuron_attribution_server.front_end.transfer import hanging_up
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.services import LIVENESS, SERVICE
from service.raw_http2 import HEADERS, RawPeer
from service.scraping import free_address
from service.servers import (
    PATIENCE,
    attribution,
    eventually,
    listening_address,
    running_server,
    server_process,
    worker_processes,
)

pytestmark = pytest.mark.process

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"


def asked(service=SERVICE):
    return health_pb2.HealthCheckRequest(service=service)


def status(address, service=SERVICE):
    with grpc.insecure_channel(address) as channel, suppress(grpc.RpcError):
        return health_pb2_grpc.HealthStub(channel).Check(asked(service), timeout=PATIENCE).status


@contextmanager
def watched(address):
    """The statuses that Watch shows, and at last the code it ends with, in a list that grows."""
    seen = []

    def follow(watch):
        try:
            seen.extend(state.status for state in watch)
        except grpc.RpcError as error:
            seen.append(error.code())

    with grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(asked())
        thread = threading.Thread(target=follow, args=(watch,))
        thread.start()
        try:
            yield seen
        finally:
            watch.cancel()
            thread.join()


def begun(peer, stream):
    """Whether a call has its headers: the rest waits for the peer to read."""
    return any((kind, on) == (HEADERS, stream) for kind, _, on, _ in list(peer.frames))


@pytest.mark.parametrize("port", ["service", "health"])
def test_a_watcher_that_does_not_read_holds_up_nothing(tmp_path, monkeypatch, port):
    """Neither loading, nor other watchers, nor the news that the worker died, nor the end."""
    monkeypatch.setenv("SLOW_LOAD", str(tmp_path))
    settings = {"module": "faulty_engines", "health_listen": free_address(), "grace": 1.0}
    with server_process("make_engine_when_allowed", **settings) as process:
        address = listening_address(process)
        watched_address = address if port == "service" else settings["health_listen"]
        with (
            RawPeer(watched_address) as peer,
            watched(watched_address) as seen,
            grpc.insecure_channel(address) as channel,
        ):
            unread = [peer.open(WATCH, asked(name).SerializeToString()) for name in ("", SERVICE)]
            assert eventually(lambda: all(begun(peer, stream) for stream in unread) and seen == [NOT_SERVING])
            (tmp_path / "load").touch()
            assert eventually(lambda: status(address) == SERVING)
            attribute = channel.unary_unary("/neuron_attribution.v1.NeuronAttributionService/Attribute")
            assert attribute(attribution().SerializeToString(), timeout=PATIENCE)
            os.kill(*worker_processes(process.pid), signal.SIGKILL)
            assert eventually(lambda: seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING])
            process.send_signal(signal.SIGTERM)
            assert process.wait(settings["grace"] + 10) == 0


def test_a_watcher_does_not_hold_the_server_for_its_grace():
    with server_process(grace=PATIENCE) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        with watched(address) as seen:
            assert eventually(lambda: seen == [SERVING])
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE / 2) == 0
            assert eventually(lambda: seen == [SERVING, NOT_SERVING, grpc.StatusCode.UNAVAILABLE])


def test_who_does_not_read_is_hung_up_on_and_leaves_nothing():
    with server_process(module="impatient", log_format="text") as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        before = len(os.listdir(f"/proc/{process.pid}/fd"))
        with RawPeer(address) as watcher, RawPeer(address) as asker, watched(address) as seen:
            unread = {
                watcher: watcher.open(WATCH, asked().SerializeToString()),
                asker: asker.open(CHECK, asked().SerializeToString()),
            }
            for peer, stream in unread.items():
                assert eventually(lambda: peer.ended(stream))  # noqa: B023 - called at once
            assert seen == [SERVING], "who reads is left alone"
        assert eventually(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) == before)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
        assert log.count("a caller did not take what it was sent in 1 seconds; hanging up") == len(unread)
        assert f"servicer method [{WATCH}]" not in log, "its call is cancelled, as a caller's own end does"


def test_a_bounded_number_may_watch_and_all_may_ask(monkeypatch, engine):
    monkeypatch.setattr(health, "MOST_WATCHERS", 2)
    with running_server(ThreadWorker(engine)) as server, engine, ExitStack() as watchers:
        assert server.loaded.wait(PATIENCE)
        first, second = (watchers.enter_context(watched(server.address)) for _ in range(2))
        assert eventually(lambda: first == second == [SERVING])
        with watched(server.address) as refused:
            assert eventually(lambda: refused == [grpc.StatusCode.RESOURCE_EXHAUSTED])
        assert status(server.address) == SERVING
        watchers.close()
        with watched(server.address) as seen:
            assert eventually(lambda: seen == [SERVING] or seen.clear())


def test_names_nobody_has_are_answered_as_the_protocol_says(shared_server):
    stub = health_pb2_grpc.HealthStub(shared_server.channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Check(asked("nobody"), timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(asked("nobody"))
    assert next(watch).status == UNKNOWN
    assert watch.is_active(), "a service of that name might come"
    watch.cancel()
    with pytest.raises(grpc.RpcError) as refused:
        next(stub.Watch(asked("n" * (health.LONGEST_NAME + 1)), timeout=PATIENCE))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_all_services_are_listed(shared_server):
    listed = health_pb2_grpc.HealthStub(shared_server.channel).List(health_pb2.HealthListRequest(), timeout=PATIENCE)
    assert {name: each.status for name, each in listed.statuses.items()} == dict.fromkeys(
        ("", SERVICE, LIVENESS), SERVING
    )


def test_only_the_connection_that_is_meant_is_ended():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(2)]
        (meant, own), (other, others) = pairs
        host, port = meant.getsockname()
        hanging_up.hang_up(f"ipv4:{host}:{port}")
        hanging_up.hang_up("unix:")
        assert meant.recv(1) == b""
        others.sendall(b"!")
        assert other.recv(1) == b"!"
        for each in (meant, own, other, others):
            each.close()


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("ipv4:127.0.0.1:50051", ("::ffff:127.0.0.1", 50051, 0, 0)),
        ("ipv6:%5B::1%5D:50051", ("::1", 50051, 0, 0)),
        ("ipv6:[2001:db8:0:0::1]:50051", ("2001:db8::1", 50051, 0, 0)),
        ("ipv6:%5Bfe80::1%25eth0%5D:50051", ("fe80::1%eth0", 50051, 0, 2)),
    ],
)
def test_an_address_is_known_by_any_of_its_spellings(peer, name):
    assert hanging_up.caller_of(peer) == hanging_up.caller_named(name)
