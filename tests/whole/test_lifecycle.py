"""Health, reflection, loading, failing and stopping: in a thread, and as real processes."""

import asyncio
import signal
import socket
import time
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.services import LIVENESS, SERVICE
from neuron_attribution_server.settings.config import ServerConfig
from service.servers import (
    PATIENCE,
    RunningServer,
    attribution,
    failure,
    listening_address,
    running_server,
    server_process,
    worker_processes,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_follows_the_model(engine):
    engine.loadable.clear()
    with running_server(ThreadWorker(engine)) as server, engine:
        assert [server.health(name) for name in ("", SERVICE)] == [NOT_SERVING, NOT_SERVING]
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(request, timeout=PATIENCE)
        assert next(watch).status == NOT_SERVING
        engine.loadable.set()
        assert next(watch).status == SERVING
        watch.cancel()
        assert [server.health(name) for name in ("", SERVICE)] == [SERVING, SERVING]
        assert len(engine.batches) == 1, "warmed up with one task before serving"
        assert server.attribute().explanations


def test_liveness_does_not_wait_for_the_model(engine):
    engine.loadable.clear()
    with running_server(ThreadWorker(engine)) as server, engine:
        assert (server.health(), server.health(LIVENESS)) == (NOT_SERVING, SERVING)
        engine.loadable.set()
        assert server.loaded.wait(PATIENCE)
        assert (server.health(), server.health(LIVENESS)) == (SERVING, SERVING)


def test_calls_while_loading_are_unavailable(engine):
    engine.loadable.clear()
    with running_server(ThreadWorker(engine)) as server, engine:
        error, status = failure(server.attribute)
        assert status.code() is grpc.StatusCode.UNAVAILABLE
        assert error.reason == "MODEL_LOADING"
        engine.loadable.set()
        assert server.loaded.wait(PATIENCE)
        assert server.attribute().explanations


def test_reflection_lists_the_services(server):
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [response] = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
    names = {service.name for service in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_old_connections_are_replaced_without_a_failed_call(engine):
    """So that clients come to use new replicas."""
    with running_server(ThreadWorker(engine), maximum_connection_age=1) as server, engine:
        assert server.loaded.wait(PATIENCE)
        end, peers = time.monotonic() + 3, set()
        while time.monotonic() < end:
            call = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
            assert call.result().explanations
            peers |= server_connections(server.address)
        assert len(peers) > 1


@pytest.fixture
def ready_process():
    """A real server process that serves, and a connection to it."""
    yield from _ready()


@pytest.fixture
def unforgiving_process():
    """The same, but a worker that dies is not restarted."""
    yield from _ready(restarts=0)


def _ready(**settings):
    with server_process(**settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        with grpc.insecure_channel(address) as channel:
            yield process, RunningServer(address, channel, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_a_real_server_cleanly(ready_process, number):
    process, server = ready_process
    assert server.attribute().explanations
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


def test_a_stop_signal_ends_a_server_that_still_loads():
    with server_process("hang_while_loading") as process:
        listening_address(process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")


def test_the_worker_dies_with_a_killed_server(ready_process):
    process, _ = ready_process
    [worker] = worker_processes(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while _is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # nothing tells when a grandchild has ended


def test_a_worker_that_died_too_often_fails_the_call_and_ends_the_server(unforgiving_process):
    process, server = unforgiving_process
    error, status = failure(lambda: server.attribute(attribution(" die")))
    assert status.code() is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "WORKER_GONE"
    assert error.retry_after > 0, "another server may have a worker"
    assert process.wait(PATIENCE) == 1


def test_a_model_that_cannot_be_loaded_is_one_readable_line():
    with server_process("fail_to_load") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors == "neuron-attribution serve: no such model: 'nowhere' is neither a folder nor on the Hub\n"


def test_a_worker_that_dies_while_loading_is_one_readable_line():
    with server_process("die_while_loading") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "exit code 9" in errors


def test_a_port_in_use_is_refused(engine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(model="fake", listen=f"127.0.0.1:{taken.getsockname()[1]}")
        assert asyncio.run(Application(config, ThreadWorker(engine)).run()) == 1


def server_connections(address):
    """The local ports of this process's connections to an address."""
    host_port = int(address.rpartition(":")[2])
    return {
        connection.laddr.port
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == host_port
    }


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
