"""Batches, deadlines, cancellation and a full queue, as clients on a real port see them."""

import asyncio
import hashlib
import time
from contextlib import suppress
from queue import SimpleQueue
from statistics import median

import grpc
import pytest
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import BATCH_SECONDS, PROMPT, TOKENIZER
from service.servers import PATIENCE, attribution, failure, listening_address, running_server, server_process
from soak.overload import Bounds, overload

pytestmark = pytest.mark.process


def seen_texts(engine):
    return [TOKENIZER.text(task.token_ids[-1]) for batch in engine.batches for task in batch]


def test_two_clients_at_once_share_a_batch(server, engine):
    """What two clients send while the worker is busy runs as one batch."""
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as other_channel:
        other = type(server)(server.address, other_channel, server.loaded)
        calls = [each.stub.Attribute.future(attribution(), timeout=PATIENCE) for each in (server, other)]
        for each in (server, other):
            failure(lambda each=each: each.stub.Attribute(attribution(), timeout=0.5))  # by now the calls have arrived
        engine.released.set()
        assert [call.result().timings.batch_requests for call in calls] == [2, 2]
        assert first.result().timings.batch_requests == 1


def test_an_expired_request_is_never_run(server, engine):
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    _, status = failure(lambda: server.stub.Attribute(attribution(" Rome"), timeout=0.2))
    assert status.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    engine.released.set()
    assert first.result().explanations
    assert server.attribute(attribution(" is")).explanations
    assert seen_texts(engine) == [" is", " is"]


def test_a_cancelled_request_is_never_run(server, engine):
    engine.hold()
    first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
    assert engine.started.wait(PATIENCE)
    cancelled = server.stub.Attribute.future(attribution(" Rome"), timeout=PATIENCE)
    assert cancelled.cancel()
    server.stub.Attribute.future(attribution(), timeout=0.2).exception()  # by now the cancellation has arrived
    engine.released.set()
    assert first.result().explanations
    assert server.attribute(attribution(" is")).explanations
    assert seen_texts(engine) == [" is", " is"]


def test_a_full_queue_pushes_back(engine):
    with running_server(ThreadWorker(engine), queued_requests=1, cache_bytes=0) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.hold()
        first = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
        assert engine.started.wait(PATIENCE)
        pair = [server.stub.Attribute.future(attribution(), timeout=PATIENCE) for _ in range(2)]
        # One of the two gets the only place; the other one is refused while the first still waits.
        refused = next(done for done in _as_completed(pair) if done.exception() is not None)
        error = from_rpc_error(refused.exception(), server.address)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "QUEUE_FULL"
        assert error.retry_after > 0
        assert int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) == round(error.retry_after * 1000)
        engine.released.set()
        assert all(call.result().explanations for call in (first, *pair) if call is not refused)
        assert server.attribute().explanations


def test_a_thousand_expired_and_a_thousand_cancelled_calls_leave_nothing_behind(tmp_path, monkeypatch):
    """The queue has room for a thousand calls and not one token more, so each thousand shows that all room is back.

    Only the last thousand is run, and what went to the worker before it was late: one batch, to go first inside the one
    that is overdue, if that would look up."""
    calls, tokens = 1000, len(TOKENIZER.ids(PROMPT))
    limits = {"queued_requests": calls, "queued_tokens": calls * tokens, "maximum_tokens": 64, "cache_bytes": 0}
    gate, batches = tmp_path / "open", tmp_path / "batches"
    gate.touch()
    monkeypatch.setenv("GATED_ENGINE", str(tmp_path))
    with server_process("make_gated_engine", module="faulty_engines", **limits) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        batches.unlink()  # the warm-up's
        gate.unlink()
        codes = asyncio.run(_first_expired_cancelled_answered(address, calls, batches, gate))
    assert codes == [
        {grpc.StatusCode.OK},
        {grpc.StatusCode.DEADLINE_EXCEEDED},
        {grpc.StatusCode.CANCELLED},
        {grpc.StatusCode.OK},
    ]
    first, *sizes = map(int, batches.read_text().split())
    assert first == 1
    assert calls <= sum(sizes) <= calls + max(sizes)


async def _first_expired_cancelled_answered(address, calls, batches, gate):
    """The statuses of a call that keeps the worker busy, and of calls that all expire while they wait, are all
    cancelled while they wait, and are answered."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        first = asyncio.ensure_future(stub.Attribute(attribution(), timeout=PATIENCE).code())
        while not batches.exists():
            await asyncio.sleep(0.01)
        expiring = [stub.Attribute(attribution(), timeout=5) for _ in range(calls)]
        await _until_full(stub, expiring)
        expired = {await call.code() for call in expiring}
        waiting = [stub.Attribute(attribution(), timeout=PATIENCE) for _ in range(calls)]
        await _until_full(stub, waiting)
        for call in waiting:
            call.cancel()
        cancelled = {await call.code() for call in waiting}
        answered = [asyncio.create_task(_code_once_taken(stub)) for _ in range(calls)]
        await _until_full(stub, answered)
        gate.touch()
        return [{await first}, expired, cancelled, set(await asyncio.gather(*answered))]


async def _until_full(stub, calls):
    """Wait until the queue is full, or until the calls have ended that were to fill it: on a slow machine the first of
    them may have expired by then."""
    while not all(call.done() for call in calls):
        if await stub.Attribute(attribution(), timeout=0.1).code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return


async def _code_once_taken(stub):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    while code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # while what was cancelled is still leaving
        code = await stub.Attribute(attribution(), timeout=PATIENCE).code()
    return code


def test_ten_times_the_load_is_answered_within_the_bound_or_refused_at_once():
    """Without a bound on what waits, the last call would wait for ten times the seconds of the load."""
    seconds, bounds = 3, Bounds(queued_requests=8, batch_requests=2)
    found = overload(seconds, bounds)
    assert found.codes.keys() == {"OK", "RESOURCE_EXHAUSTED"}
    assert found.codes["OK"] > 0.3 * seconds * bounds.capacity
    assert len(found.pushbacks) == found.codes["RESOURCE_EXHAUSTED"] > found.codes["OK"]
    assert min(found.pushbacks) > 0
    assert max(found.accepted) < bounds.longest_wait + 3
    assert sorted(found.health)[round(0.99 * len(found.health)) - 1] < 1
    assert found.growth < 16 * 2**20
    assert found.wait_afterwards < 1


def test_a_tenant_that_floods_does_not_delay_another(tmp_path):
    """Alone a call takes one batch's time; beside a flood of 200 callers, that of the running batch and of one or two
    more. First come, first served, it would wait for the flood's 32 waiting batches."""
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("light", "flood")))
    settings = {"token_file": str(tokens), "batch_requests": 4, "cache_bytes": 0}
    with server_process("make_timed_engine", **settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        alone, beside, refused = asyncio.run(_beside_a_flood(address))
    assert median(beside) < 5 * median(alone)
    assert refused == {"TENANT_QUEUE_FULL"}


async def _beside_a_flood(address, callers=200):
    """The seconds of one tenant's calls, alone and beside the callers of another, and why those are refused."""
    refused = set()

    async def call(tenant):
        started = time.perf_counter()
        metadata = (("authorization", f"Bearer {tenant}"),)  # each tenant's token is its name
        await stub.Attribute(attribution(), timeout=PATIENCE, metadata=metadata)
        return time.perf_counter() - started

    async def flood():
        while True:
            try:
                await call("flood")
            except grpc.aio.AioRpcError as error:
                refused.add(from_rpc_error(error, address).reason)
                await asyncio.sleep(20 * BATCH_SECONDS)

    async with grpc.aio.insecure_channel(address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        alone = [await call("light") for _ in range(5)]
        flooding = [asyncio.create_task(flood()) for _ in range(callers)]
        while not refused:
            await asyncio.sleep(BATCH_SECONDS)
        beside = [await call("light") for _ in range(10)]
        for each in flooding:
            each.cancel()
        for each in flooding:
            with suppress(asyncio.CancelledError):
                await each
    return alone, beside, refused


def _as_completed(calls):
    done = SimpleQueue()
    for call in calls:
        call.add_done_callback(done.put)
    for _ in calls:
        yield done.get(timeout=PATIENCE)
