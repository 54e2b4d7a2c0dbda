"""The project's Envoy configuration, with a real Envoy between the client and two server processes."""

import asyncio
import signal
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from deploy.envoys import COMMAND, CONFIGURATION, needs_envoy, running_envoy
from deploy.gated_servers import gated_servers
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from neuron_attribution import AsyncClient, Client, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.services import SERVICE
from neuron_attribution_server.settings.config import ServerConfig
from service.fakes import PROMPT
from service.servers import PATIENCE, attribution, eventually, failure, worker_processes

pytestmark = needs_envoy
ENVOYS_OWN_TIMEOUT = 15
"""Seconds after which Envoy ends a call where nothing else is configured."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two servers and Envoy before them, for tests that leave them as they were."""
    folder = tmp_path_factory.mktemp("pair")
    with gated_servers(folder, "a", "b") as servers, running_envoy(folder, *addresses(servers)) as envoy:
        yield servers, envoy


def addresses(servers):
    return [server.address for server in servers]


def held(*servers):
    for server in servers:
        server.hold()


def released(*servers):
    for server in servers:
        server.release()


async def calls(client, number, **options):
    """The names of the servers that answered."""
    results = await asyncio.gather(*[client.attribute(PROMPT, **options) for _ in range(number)])
    return [result.model.revision for result in results]


def called(envoy, number, **options):
    """The same for calls with nothing in between."""

    async def run():
        async with AsyncClient(envoy.address, timeout=PATIENCE) as client:
            return await calls(client, number, **options)

    return asyncio.run(run())


async def until(true):
    assert await asyncio.to_thread(eventually, true)


def test_the_configuration_is_valid():
    command = [COMMAND, "--mode", "validate", "--log-level", "warning", "-c", CONFIGURATION]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "no warning, of deprecated fields for instance"


def test_servers_take_turns(pair):
    _, envoy = pair
    assert Counter(called(envoy, 40)) == {"a": 20, "b": 20}


def test_a_stream_is_answered_item_by_item(pair):
    _, envoy = pair

    async def run():
        answered = asyncio.Event()

        async def items():
            yield "first", PROMPT
            await answered.wait()
            for number in range(200):
                yield str(number), PROMPT

        keys = []
        async with AsyncClient(envoy.address) as client:
            async for outcome in client.attribute_stream(items(), timeout=PATIENCE):
                assert outcome.result is not None
                keys.append(outcome.key)
                answered.set()
        return keys

    keys = asyncio.run(run())
    assert keys[0] == "first"
    assert set(keys[1:]) == {str(number) for number in range(200)}


def test_a_call_may_take_longer_than_envoy_allows_by_itself(pair):
    servers, envoy = pair
    held(*servers)
    with grpc.insecure_channel(envoy.address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)  # which calls once, where the client calls again
        call = stub.Attribute.future(attribution(), timeout=ENVOYS_OWN_TIMEOUT + PATIENCE)
        time.sleep(ENVOYS_OWN_TIMEOUT + 1)
        assert not call.done()
        released(*servers)
        assert call.result().explanations


def test_what_is_too_large_is_refused_before_a_server_sees_it(pair):
    _, envoy = pair
    limit = ServerConfig(model="fake").maximum_request_bytes
    largest = "x" * (limit - attribution("x" * limit).ByteSize() + limit)
    with grpc.insecure_channel(envoy.address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        before = envoy.statistic("upstream_rq_total")
        error, _ = failure(lambda: stub.Attribute(attribution(largest + "x"), timeout=PATIENCE))
        assert (type(error), error.reason) == (ResourceExhaustedError, "MESSAGE_TOO_LARGE")
        assert envoy.statistic("upstream_rq_total") == before
        error, _ = failure(lambda: stub.Attribute(attribution(largest), timeout=PATIENCE))
        assert (type(error), error.violations[0].field) == (InvalidArgumentError, "prompt.text"), "a server refused it"


def test_what_a_killed_server_held_is_answered_by_the_other(tmp_path):
    with gated_servers(tmp_path, "a", "b") as servers, running_envoy(tmp_path, *addresses(servers)) as envoy:
        a, _ = servers

        async def run():
            async with AsyncClient(envoy.address, timeout=PATIENCE) as client:
                running = asyncio.create_task(calls(client, 40))
                await until(lambda: envoy.statistic("upstream_rq_active") == 40)
                a.process.kill()
                released(*servers)
                return await running + await calls(client, 40)

        held(*servers)
        assert asyncio.run(run()) == ["b"] * 80
        entries = envoy.calls(80)
        assert {entry["grpc_status"] for entry in entries} == {"OK"}, "Envoy retried, and the client saw no failure"
        assert sum(entry["attempts"] > 1 for entry in entries) >= 20
        assert ejections(envoy) >= 1


def test_a_drained_server_gets_no_new_calls_and_finishes_its_running_ones(tmp_path):
    with (
        gated_servers(tmp_path, "a", "b", drain_delay=5.0, grace=60.0) as servers,
        running_envoy(tmp_path, *addresses(servers)) as envoy,
    ):
        a, b = servers

        async def run():
            async with AsyncClient(envoy.address, timeout=2 * PATIENCE) as client:
                running = asyncio.create_task(calls(client, 20))
                await until(lambda: envoy.statistic("upstream_rq_active") == 20)
                a.process.send_signal(signal.SIGTERM)
                await until(lambda: envoy.statistic("membership_healthy") == 1)
                b.release()
                new = await calls(client, 20)
                await until(lambda: not listens(a.address))
                a.release()
                return Counter(await running), new

        held(*servers)
        assert asyncio.run(run()) == ({"a": 10, "b": 10}, ["b"] * 20)
        assert {(entry["grpc_status"], entry["attempts"]) for entry in envoy.calls(40)} == {("OK", 1)}
        assert a.process.wait(PATIENCE) == 0


def listens(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_request_that_kills_workers_is_kept_from_the_other_server(tmp_path):
    with gated_servers(tmp_path, "a", "b") as servers, running_envoy(tmp_path, *addresses(servers)) as envoy:
        before = [worker_processes(server.process.pid) for server in servers]
        with Client(envoy.address, timeout=PATIENCE) as client, pytest.raises(UnavailableError) as died:
            client.attribute("The die")
        assert died.value.reason == "WORKER_DIED"
        [entry] = envoy.calls(1)
        assert entry["attempts"] == 1
        after = [worker_processes(server.process.pid) for server in servers]
        assert sum(was == now for was, now in zip(before, after, strict=True)) == 1


def test_a_busy_server_is_not_ejected(tmp_path):
    settings = {"queued_requests": 1, "batch_requests": 1}
    with (
        gated_servers(tmp_path, "a", "b", **settings) as servers,
        running_envoy(tmp_path, *addresses(servers)) as envoy,
    ):

        async def run():
            async with AsyncClient(envoy.address, timeout=3) as client:
                return await asyncio.gather(*[client.attribute(PROMPT) for _ in range(40)], return_exceptions=True)

        held(*servers)
        outcomes = asyncio.run(run())
        refused = [outcome for outcome in outcomes if isinstance(outcome, ResourceExhaustedError)]
        assert len(refused) >= 30
        assert {(error.reason, error.retry_after > 0) for error in refused} == {("QUEUE_FULL", True)}
        released(*servers)
        assert not ejections(envoy)
        assert set(called(envoy, 2)) == {"a", "b"}


def ejections(envoy):
    return envoy.statistic("outlier_detection.ejections_enforced_total")


class OneStatus(services.NeuronAttributionServiceServicer):
    """Answers every attribution with the same status at once, and remembers the deadlines it was given."""

    def __init__(self, code):
        self._code = code
        self.remaining = []

    def Attribute(self, request, context):
        self.remaining.append(context.time_remaining())
        context.abort(self._code, "always")


@contextmanager
def faulty_server(code):
    """A server that says it serves and fails every call. Yields its address and servicer."""
    servicer, healthy = OneStatus(code), health.HealthServicer()
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor())
    services.add_NeuronAttributionServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}", servicer
    finally:
        server.stop(None).wait()


def test_unavailable_is_asked_of_another_server(tmp_path):
    with (
        gated_servers(tmp_path, "a") as [a],
        faulty_server(grpc.StatusCode.UNAVAILABLE) as (address, servicer),
        running_envoy(tmp_path, a.address, address) as envoy,
    ):
        assert called(envoy, 10, timeout=17) == ["a"] * 10
        assert len(servicer.remaining) == 5
        assert all(0 < seconds <= 17 for seconds in servicer.remaining), "servers are told the caller's deadline"
        assert Counter(entry["attempts"] for entry in envoy.calls(10)) == {1: 5, 2: 5}


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL])
def test_a_status_does_not_eject_a_server(tmp_path, code):
    with (
        faulty_server(code) as (first, servicer),
        faulty_server(code) as (second, _),
        running_envoy(tmp_path, first, second) as envoy,
        grpc.insecure_channel(envoy.address) as channel,
    ):
        stub = services.NeuronAttributionServiceStub(channel)
        futures = [stub.Attribute.future(attribution(), timeout=PATIENCE) for _ in range(40)]
        assert {future.code() for future in futures} == {code}
        assert len(servicer.remaining) == 20
        assert not ejections(envoy)
