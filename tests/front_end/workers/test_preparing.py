"""What a worker prepares for requests to come: while it is idle, and never in front of anyone for long."""

import asyncio
import time

import pytest
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.faulty_engines import (
    ENDLESS,
    MEND,
    make_engine_that_cannot_prepare,
    make_preparing_engine,
)

pytestmark = pytest.mark.process
PATIENCE = 30


def in_a_process(factory, scenario):
    async def run():
        worker = ProcessWorker(factory)
        try:
            await worker.start()
            return await scenario(worker)
        finally:
            await worker.stop()

    return asyncio.run(asyncio.wait_for(run(), PATIENCE))


def task(*ids):
    return AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1),))


async def prepared(worker):
    while worker.prepared < 1:
        await asyncio.sleep(0.01)


def test_an_idle_worker_prepares_and_says_how_far_it_is():
    async def scenario(worker):
        seen = [worker.prepared]
        while seen[-1] < 1:
            await asyncio.sleep(0.02)
            seen.append(worker.prepared)
        return seen

    seen = in_a_process(make_preparing_engine, scenario)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_calls_that_never_pause_are_answered_amid_it_and_leave_it_its_time():
    """Each takes half of a part: none waits for the rest of one, and none makes the worker begin a part again."""

    async def scenario(worker):
        calls = 0
        preparing = asyncio.create_task(prepared(worker))
        while not preparing.done():
            [answer] = await worker.run([task(1)])
            assert answer.token_ids == (1,)
            calls += 1
        return calls

    assert in_a_process(make_preparing_engine, scenario) >= 10


def test_a_long_batch_is_not_made_longer_and_can_be_stopped():
    async def scenario(worker):
        running = asyncio.create_task(worker.run([task(ENDLESS)]))
        await asyncio.sleep(0.5)
        before = worker.prepared
        await asyncio.sleep(0.5)
        assert worker.prepared == before < 1, "nothing is prepared while a batch runs"
        for number in list(worker._batches):
            worker._drop(number)
        [stopped] = await running
        assert stopped.reason == "UNWANTED"
        await prepared(worker)

    in_a_process(make_preparing_engine, scenario)


def test_what_cannot_be_prepared_is_told_and_stops_nobody(capfd):
    async def scenario(worker):
        started = time.monotonic()
        [answer] = await worker.run([task(1)])
        assert answer.token_ids == (1,)
        return time.monotonic() - started

    in_a_process(make_engine_that_cannot_prepare, scenario)
    assert "this cannot be prepared" in capfd.readouterr().err


def test_what_could_not_be_prepared_is_gone_on_with_once_a_batch_could_do_a_part():
    async def scenario(worker):
        await worker.run([task(1)])
        assert worker.prepared == 0, "it is not tried again for nothing"
        await worker.run([task(MEND)])
        while worker.prepared == 0:
            await asyncio.sleep(0.01)
        await prepared(worker)

    in_a_process(make_engine_that_cannot_prepare, scenario)


def test_what_a_batch_prepares_is_told():
    """It does all that is left: nothing comes after it that would tell."""

    async def scenario(worker):
        await worker.run([task(*(MEND,) * 10)])
        await prepared(worker)

    in_a_process(make_engine_that_cannot_prepare, scenario)
