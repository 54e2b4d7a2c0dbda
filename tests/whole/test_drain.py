"""A stop signal under load: what was accepted is answered, what comes later is refused, and the exit status is 0."""

import asyncio
import os
import signal
import time
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.services import LIVENESS
from service.servers import PATIENCE, attribution, listening_address, server_process, worker_processes

SERVING = health_pb2.HealthCheckResponse.SERVING
CALLERS = 64
GRACE = 60
SETTINGS = {"cache_bytes": 0, "batch_requests": 4, "grace": float(GRACE)}


@pytest.fixture
def loaded_server():
    """A server whose batches of at most four calls take a while each, and its address."""
    with server_process("make_timed_engine", **SETTINGS) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        yield process, address


def test_no_accepted_call_is_lost(loaded_server):
    process, address = loaded_server
    codes, later = asyncio.run(_stop_under_load(process, address))
    assert codes == [grpc.StatusCode.OK] * CALLERS
    assert later is grpc.StatusCode.UNAVAILABLE
    started = time.monotonic()
    assert process.wait(PATIENCE) == 0
    assert time.monotonic() - started < GRACE


async def _stop_under_load(process, address):
    """The statuses of calls that were waiting when the signal came, and that of one that came after it."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        calls = [stub.Attribute(attribution(), timeout=PATIENCE) for _ in range(CALLERS)]
        await asyncio.wait([asyncio.ensure_future(call.code()) for call in calls], return_when=asyncio.FIRST_COMPLETED)
        process.send_signal(signal.SIGTERM)
        await _until_not_serving(address)
        later = await _first_other_code(address)
        return [await call.code() for call in calls], later


async def _until_not_serving(address):
    """Health ends with the listener, or says so first."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with suppress(grpc.aio.AioRpcError):
            while (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING:
                await asyncio.sleep(0.01)


async def _first_other_code(address):
    """That of the first call which is not answered: the first ones may be, while the server takes what has come."""
    codes = [grpc.StatusCode.OK]
    while codes[-1] is grpc.StatusCode.OK:
        codes.append(await _code_on_a_new_connection(address))
    return codes[-1]


async def _code_on_a_new_connection(address):
    async with grpc.aio.insecure_channel(address) as channel:
        return await services.NeuronAttributionServiceStub(channel).Attribute(attribution(), timeout=PATIENCE).code()


def test_calls_are_taken_while_endpoints_update():
    """During the drain delay health says NOT_SERVING, even when a worker comes back; calls are still answered."""
    with server_process("make_timed_engine", drain_delay=5.0, **SETTINGS) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        process.send_signal(signal.SIGTERM)
        asyncio.run(_until_not_serving(address))
        assert _health(address, LIVENESS) == SERVING
        [worker] = worker_processes(process.pid)
        os.kill(worker, signal.SIGKILL)
        assert asyncio.run(_code_on_a_new_connection(address)) is grpc.StatusCode.OK
        with suppress(grpc.RpcError):  # on a slow machine the delay is over
            assert _health(address) != SERVING
        assert process.wait(PATIENCE) == 0


def _health(address, service=""):
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status
