"""Signals end a real server in the time that is configured, whatever its callers and its own threads do."""

import os
import signal
import socket
from contextlib import ExitStack

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.fakes import PROMPT
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

GRACE = 2.0
LATEST = GRACE + 10
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SERVICE = "/neuron_attribution.v1.NeuronAttributionService/"
ASKED = health_pb2.HealthCheckRequest()
CALLS = {
    f"{SERVICE}Attribute": (attribution(),),
    f"{SERVICE}AttributeStream": [
        messages.AttributeStreamRequest(key=str(number), request=attribution()) for number in range(64)
    ],
    f"{SERVICE}Tokenize": (messages.TokenizeRequest(text=PROMPT),),
    f"{SERVICE}GetModel": (messages.GetModelRequest(),),
    "/grpc.health.v1.Health/Check": (ASKED,),
    "/grpc.health.v1.Health/Watch": (ASKED,),
}
BEGINNINGS = (b"", b"PRI * HTTP/2.0\r\n", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")


def opened(address):
    """A connection nobody says anything sensible on."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def opened_calls(address, *, mute):
    """A peer that has called everything and reads nothing; streams stay open."""
    peer = RawPeer(address, mute=mute)
    for path, requests in CALLS.items():
        peer.open(path, *(request.SerializeToString() for request in requests), end="Stream" not in path)
    return peer


def assert_serves(address):
    with grpc.insecure_channel(address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        assert stub.Attribute(attribution(), timeout=PATIENCE).explanations


def ended(process, *pids):
    """The log and the exit status of a process that ends in time, and takes others along."""
    _, log = process.communicate(timeout=LATEST)
    assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    return log, process.returncode


def test_nobody_who_is_connected_holds_the_server():
    health, metrics, web = (free_address() for _ in range(3))
    settings = {"grace": GRACE, "health_listen": health, "metrics_listen": metrics, "web": web}
    with server_process(**settings) as process, ExitStack() as peers:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        for port in (address, health):
            for mute in (False, True):
                peers.enter_context(opened_calls(port, mute=mute))
        for port in (address, health, metrics, web):
            for beginning in BEGINNINGS:
                peers.enter_context(opened(port)).sendall(beginning)
        assert_serves(address)  # which shows, too, that those before are taken up
        workers = worker_processes(process.pid)
        process.send_signal(signal.SIGTERM)
        _, status = ended(process, *workers)
        assert status == 0


@pytest.fixture
def hangups():
    """What is started meanwhile is told of hangups, even where these tests were started so that they are not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_signal_drains_and_the_log_names_it(number, turnstile):
    """What was accepted is answered."""
    settings = {"module": "faulty_engines", "log_format": "text", "grace": PATIENCE}
    with server_process("make_turnstile_engine", **settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        with grpc.insecure_channel(address) as channel:
            call = services.NeuronAttributionServiceStub(channel).Attribute.future(attribution(), timeout=PATIENCE)
            assert eventually(lambda: turnstile.batches == [1])
            process.send_signal(number)
            turnstile.allow(1)
            assert call.result().explanations
        log, status = ended(process)
        assert status == 0
        assert f"draining signal={number.name}" in log
        assert "stopped status=0" in log


@pytest.fixture
def nohup():
    """What is started meanwhile ignores hangups."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("nohup")
def test_a_hangup_is_ignored_where_the_server_was_started_so():
    """As nohup does."""
    with server_process() as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        process.send_signal(signal.SIGHUP)
        assert_serves(address)
        assert process.poll() is None


def test_a_worker_ignores_the_signals_that_its_terminal_sends_to_all():
    with server_process() as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        workers = worker_processes(process.pid)
        for number in SIGNALS:
            os.kill(*workers, number)
        assert_serves(address)
        assert worker_processes(process.pid) == workers


def test_a_worker_that_is_stopped_does_not_outlive_the_server():
    with server_process(grace=GRACE, log_format="text") as process:
        listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        [worker] = worker_processes(process.pid)
        os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        log, status = ended(process, worker)
        assert status == 0
        assert "the worker process did not end; killing it" in log


def test_threads_that_do_not_end_do_not_hold_the_process():
    with server_process(module="lingering", grace=0.5, log_format="text") as process:
        listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        workers = worker_processes(process.pid)
        process.send_signal(signal.SIGTERM)
        log, status = ended(process, *workers)
        assert status == 0
        assert log.count("the server did not end in 2.5 seconds; it ends now, with exit status 0") == 1


def test_a_failure_keeps_its_exit_status_though_threads_do_not_end():
    with server_process(module="lingering", grace=0.5, restarts=0, log_format="text") as process:
        listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        os.kill(*worker_processes(process.pid), signal.SIGKILL)
        log, status = ended(process)
        assert status == 1
        assert "it ends now, with exit status 1" in log
