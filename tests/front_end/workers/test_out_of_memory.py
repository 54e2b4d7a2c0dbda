"""Batches that find no memory are split, down to the request that cannot be run at all."""

import asyncio

import grpc
import pytest
from neuron_attribution.errors import ResourceExhaustedError
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.answers import PackedAttribution
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import run_batch
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.fakes import FakeEngine
from service.faulty_engines import HUGE, SmallEngine
from service.servers import (
    PATIENCE,
    failure,
    listening_address,
    prompt,
    running_server,
    server_process,
    with_stub,
    worker_processes,
)

pytestmark = pytest.mark.process


def task(*ids):
    return AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1),))


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_without_memory_a_batch_is_split_and_only_the_impossible_request_fails(error):
    engine = SmallEngine(error)
    tasks = [task(number) for number in (1, 2, 3, HUGE, 4, 5, 6, 7)]
    answers = run_batch(engine, tasks, BatchReport())
    refused = answers.pop(3)
    assert isinstance(refused, ResourceExhaustedError)
    assert refused.reason == "OUT_OF_MEMORY"
    assert all(isinstance(answer, PackedAttribution) for answer in answers)
    assert [answer.token_ids for answer in answers] == [(number,) for number in (1, 2, 3, 4, 5, 6, 7)]
    assert [len(batch) for batch in engine.batches] == [8, 4, 2, 2, 1, 1, 4, 2, 2]


def test_real_torch_errors_are_recognized():
    torch = pytest.importorskip("torch")

    class Greedy(FakeEngine):
        def run(self, tasks):
            if len(tasks) > 1:
                torch.empty(1 << 60, dtype=torch.uint8)
            raise torch.OutOfMemoryError("CUDA out of memory")

    answers = run_batch(Greedy(), [task(1), task(2)], BatchReport())
    assert [answer.reason for answer in answers] == ["OUT_OF_MEMORY"] * 2


def test_a_request_without_memory_names_the_remedy_and_is_not_sent_again():
    with running_server(ThreadWorker(SmallEngine())) as server:
        assert server.loaded.wait(PATIENCE)
        error, status = failure(lambda: server.attribute(prompt(HUGE)))
        assert status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "OUT_OF_MEMORY"
        assert "fewer tokens" in error.message
        assert dict(status.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"


def test_a_batch_without_memory_is_split_and_all_but_the_impossible_caller_are_answered():
    """Eight calls that waited for the same batch; the worker process lives on."""
    with server_process("make_slow_small_engine", module="faulty_engines", cache_bytes=0) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        (worker,) = worker_processes(process.pid)
        responses, refused = with_stub(address, _eight_behind_one)
        assert worker_processes(process.pid) == [worker]
    assert [[token.id for token in response.tokens] for response in responses] == [[20 + n, 21] for n in range(7)]
    assert [refused.code(), from_rpc_error(refused, address).reason] == [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OUT_OF_MEMORY",
    ]


async def _eight_behind_one(stub):
    """The answers of seven calls, and the error of the one among them that needs too much."""
    first = stub.Attribute(prompt(19), timeout=PATIENCE)
    await asyncio.sleep(0.02)
    calls = [stub.Attribute(prompt(20 + n, 21), timeout=PATIENCE) for n in range(7)]
    impossible = stub.Attribute(prompt(HUGE), timeout=PATIENCE)
    assert (await first).explanations
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await impossible
    return [await call for call in calls], refused.value
