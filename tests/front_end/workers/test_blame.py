"""Which batch a worker's death is laid to, where one was sent while another ran: real processes, real deaths."""

import asyncio
import os
import signal

import pytest
from neuron_attribution.errors import UnavailableError
from neuron_attribution_server.front_end.workers.interface import Listener
from neuron_attribution_server.front_end.workers.pool import worker_pool
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.fakes import DIE
from service.faulty_engines import ENDLESS, HANG, make_engine_with_checkpoints
from service.servers import PATIENCE

pytestmark = pytest.mark.process
TWICE = "died twice while it ran this request alone"


class Stopping(Listener):
    """Keeps what stops a batch; none before it runs."""

    def __init__(self):
        self.stop = None

    def begins(self, stop):
        self.stop = stop

    async def begun(self):
        """Wait until the batch runs, and then until it runs again."""
        while self.stop is None:
            await asyncio.sleep(0.01)
        stop, self.stop = self.stop, None
        return stop


def task(*ids):
    return AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1),))


def in_a_process(scenario):
    async def run():
        worker = ProcessWorker(make_engine_with_checkpoints)
        try:
            await worker.start()
            await scenario(worker)
        finally:
            await worker.stop()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def in_a_pool(scenario, restarts=5):
    """Of one process, which may die so many times; it is killed where a batch takes over a second."""

    async def run():
        config = ServerConfig(model="fake", restarts=restarts, batch_timeout=1.0)
        pool = worker_pool(config, [make_engine_with_checkpoints])
        await pool.start()
        try:
            await scenario(pool)
        finally:
            await pool.stop()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


async def has_died_twice(pool):
    """Wait until both deaths are counted; there is no third."""
    while pool.devices()[0].restarts < 2:
        await asyncio.sleep(0.01)
    return pool.devices()[0].restarts == 2


def test_who_was_at_work_when_the_process_died_is_known():
    async def inside(worker):
        endless, deadly = [task(ENDLESS)], [task(DIE)]
        running = asyncio.create_task(worker.run(endless))
        await asyncio.sleep(0.3)
        dying = asyncio.create_task(worker.run(deadly))
        for batch in (dying, running):
            with pytest.raises(UnavailableError):
                await batch
        assert (worker.was_at_work_on(endless), worker.was_at_work_on(deadly)) == (False, True)

    async def after(worker):
        endless, short = [task(ENDLESS)], [task(1)]
        running = asyncio.create_task(worker.run(endless))
        await asyncio.sleep(0.3)
        await worker.run(short)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UnavailableError):
            await running
        assert (worker.was_at_work_on(endless), worker.was_at_work_on(short)) == (True, False)

    in_a_process(inside)
    in_a_process(after)


def test_a_death_inside_a_long_task_is_not_the_long_ones_and_it_makes_way_again_when_it_runs_again():
    async def scenario(pool):
        long, deadly = Stopping(), []
        running = asyncio.create_task(pool.run([task(ENDLESS)], long))
        for _ in range(2):
            await long.begun()
            deadly.append(asyncio.create_task(pool.interrupt([task(DIE)])))
        stop = await long.begun()
        [answer] = await pool.interrupt([task(1)])
        assert answer.token_ids == (1,)
        for each in deadly:
            each.cancel()
        stop()
        [stopped] = await running
        assert stopped.reason == "UNWANTED"

    in_a_pool(scenario)


def test_what_hangs_fails_after_two_deaths_though_others_are_sent_meanwhile():
    """They wait for a checkpoint that never comes: none of them has begun, and the one that hangs is to blame."""

    async def scenario(pool):
        hanging, answers = asyncio.create_task(pool.run([task(HANG)])), []
        await asyncio.sleep(0.1)
        while not hanging.done():
            answers += await pool.interrupt([task(1)])
            await asyncio.sleep(0.01)  # as the scheduler does: a long batch goes on between short ones
        [failed] = hanging.result()
        assert TWICE in failed.message
        assert {answer.token_ids for answer in answers} == {(1,)}
        assert await has_died_twice(pool)

    in_a_pool(scenario)


def test_what_hangs_inside_another_fails_after_two_deaths_and_the_other_goes_on():
    async def scenario(pool):
        long = Stopping()
        running = asyncio.create_task(pool.run([task(ENDLESS)], long))
        await long.begun()
        hanging = asyncio.create_task(pool.interrupt([task(HANG)]))
        stop = await long.begun()  # again, by itself
        stop()
        [stopped] = await running
        assert stopped.reason == "UNWANTED"
        [failed] = await hanging
        assert TWICE in failed.message
        assert await has_died_twice(pool)

    in_a_pool(scenario)


class Noting(Listener):
    """Notes when a batch begins."""

    def __init__(self, name, begun):
        self._name = name
        self._begun = begun
        self.stop = None

    def begins(self, stop):
        self._begun.append(self._name)
        self.stop = stop


def test_short_ones_that_were_lost_run_again_before_the_long_one_they_were_inside():
    async def scenario(pool):
        begun = []
        long, short = Noting("long", begun), Noting("short", begun)
        running = asyncio.create_task(pool.run([task(ENDLESS)], long))
        while not begun:
            await asyncio.sleep(0.01)
        inside = asyncio.create_task(pool.interrupt([task(1, 1, 1), task(1, 1)], short))
        while len(begun) < 2:
            await asyncio.sleep(0.01)
        os.kill(pool.devices()[0].pid, signal.SIGKILL)
        answers = await inside
        assert [answer.token_ids for answer in answers] == [(1, 1, 1), (1, 1)]
        while len(begun) < 5:
            await asyncio.sleep(0.01)
        assert begun == ["long", "short", "short", "short", "long"]
        long.stop()
        [stopped] = await running
        assert stopped.reason == "UNWANTED"

    in_a_pool(scenario)


def test_when_no_worker_comes_back_another_server_may_be_asked():
    """One death may be chance, and who was not at work has nothing to do with it."""

    async def scenario(pool):
        long = Stopping()
        running = asyncio.create_task(pool.run([task(ENDLESS)], long))
        await long.begun()
        deadly = asyncio.create_task(pool.interrupt([task(DIE)]))
        for error in await asyncio.gather(running, deadly, return_exceptions=True):
            assert (error.reason, error.retry_after) == ("WORKER_GONE", 1.0)

    in_a_pool(scenario, restarts=0)
