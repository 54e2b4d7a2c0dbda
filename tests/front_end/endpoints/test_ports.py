"""The gRPC ports: connections that do nothing, or whose other end has gone, take nothing from the rest."""

import os
import resource
import signal
import socket
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.front_end.endpoints import ports
from neuron_attribution_server.settings.config import ServerConfig
from service.raw_http2 import RawPeer
from service.scraping import free_address
from service.servers import (
    PATIENCE,
    attribution,
    eventually,
    listening_address,
    server_process,
    worker_processes,
)

pytestmark = pytest.mark.process

HEALTH_CONNECTIONS = 100
WATCH = "/grpc.health.v1.Health/Watch"


@contextmanager
def ready_server(**settings):
    with server_process(**settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        yield process, address


def idle(address):
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setblocking(False)
    return connection


def is_closed(connection):
    """Whether the other side has hung up."""
    try:
        while data := connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return not data


def open_files(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def assert_serves(channel):
    stub = services.NeuronAttributionServiceStub(channel)
    assert stub.Attribute(attribution(), timeout=PATIENCE).explanations


def test_a_flood_of_the_health_port_takes_no_descriptors_from_the_rest():
    health = free_address()
    with ready_server(health_listen=health) as (process, address), ExitStack() as flood:
        before = open_files(process)
        connections = [flood.enter_context(idle(health)) for _ in range(3 * HEALTH_CONNECTIONS)]
        assert eventually(lambda: sum(map(is_closed, connections)) == 2 * HEALTH_CONNECTIONS)
        assert open_files(process) <= before + HEALTH_CONNECTIONS
        os.kill(*worker_processes(process.pid), signal.SIGKILL)
        with grpc.insecure_channel(address) as channel:
            assert_serves(channel)


def test_a_bounded_number_of_connections_is_taken():
    with (
        ready_server(listen="127.0.0.1:0", maximum_connections=3) as (_, address),
        ExitStack() as flood,
        grpc.insecure_channel(address) as own,
    ):
        assert_serves(own)
        connections = [flood.enter_context(idle(address)) for _ in range(6)]
        assert eventually(lambda: sum(map(is_closed, connections)) == 4)
        assert_serves(own)
        for connection in connections:
            connection.close()
        with grpc.insecure_channel(address) as another:
            assert_serves(another)


def test_connections_that_say_nothing_are_closed():
    """They never become connections; those whose other end has gone are asked, and do not answer."""
    with ready_server(module="impatient") as (_, address), ExitStack() as peers:
        silent = peers.enter_context(idle(address))
        lost, busy, there = (peers.enter_context(RawPeer(address, window=65_535)) for _ in range(3))
        watches = [peer.open(WATCH, b"") for peer in (busy, there)]
        assert eventually(lambda: all(peer.frames for peer in (lost, busy, there)))
        lost.mute = busy.mute = True
        assert eventually(lambda: is_closed(silent) and lost.closed and busy.closed)
        assert not there.ended(watches[1])


def test_one_connection_may_have_a_bounded_number_of_calls_of_health():
    health = free_address()
    with ready_server(health_listen=health) as _, RawPeer(health, window=65_535) as peer:
        streams = [peer.open(WATCH, b"") for _ in range(30)]
        assert eventually(lambda: sum(map(peer.ended, streams)) == 20)


@pytest.fixture
def few_descriptors():
    """What is started meanwhile has fewer descriptors than it may have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, limits[0]), limits[1]))
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_server_takes_the_descriptors_that_it_may_have(few_descriptors):
    _, most = few_descriptors
    with ready_server() as (process, _):
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (most, most)


def test_connections_leave_descriptors_to_the_rest(few_descriptors):
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted, taken in ((limit, limit // 3), (10, 10)):
        options = dict(ports.service_options(ServerConfig(model="fake", maximum_connections=wanted)))
        assert options["grpc.max_allowed_incoming_connections"] == taken
