"""Both workers behind the same interface, and what the process worker does when things go wrong."""

import asyncio
import errno
import gc
import multiprocessing.connection
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import time

import psutil
import pytest
from neuron_attribution.errors import FailedPreconditionError, InternalError, UnavailableError
from neuron_attribution_server.front_end.workers import process as process_worker
from neuron_attribution_server.front_end.workers.interface import Listener, ModelLoadError
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import run_batch
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from service.fakes import (
    CRASH,
    DIE,
    DYING_SECONDS,
    FACTS,
    REFUSE,
    FakeEngine,
    fail_to_load,
    make_engine,
    make_slowly_dying_engine,
    make_unsendable_engine,
)

pytestmark = pytest.mark.process
WORKERS = {"thread": lambda: ThreadWorker(FakeEngine()), "process": lambda: ProcessWorker(make_engine)}


def task(*ids):
    return AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1),))


def working(worker, scenario):
    async def run():
        try:
            return await scenario(worker, await worker.start())
        finally:
            await worker.stop()

    return asyncio.run(asyncio.wait_for(run(), 30))


@pytest.fixture(params=WORKERS)
def worker(request):
    return WORKERS[request.param]()


def test_outcomes_come_in_the_order_of_the_tasks(worker):
    async def scenario(worker, facts):
        assert (facts.identity, facts.tokenizer) == (FACTS.identity, FACTS.tokenizer)
        outcomes = await worker.run([task(1), task(REFUSE), task(2, 3)])
        assert [outcomes[0].token_ids, outcomes[2].token_ids] == [(1,), (2, 3)]
        assert isinstance(outcomes[1], FailedPreconditionError)

    working(worker, scenario)


class Hearing(Listener):
    """Remembers what it hears, in order."""

    def __init__(self):
        self.heard = []

    def computed(self):
        self.heard.append("computed")

    def reported(self, report):
        self.heard.append(report.explained_tokens)


def test_a_listener_hears_that_a_batch_is_computed_and_gets_its_report(worker):
    async def scenario(worker, _):
        listener = Hearing()
        await worker.run([task(1), task(2, 3)], listener)
        assert listener.heard[0] == "computed"
        while len(listener.heard) < 2:
            await asyncio.sleep(0.01)
        await worker.run([task(1)])
        await asyncio.sleep(0.1)
        assert listener.heard == ["computed", 2]

    working(worker, scenario)


def test_an_engine_that_fails_fails_the_batch_and_lives_on(worker, capfd):
    async def scenario(worker, _):
        outcomes = await worker.run([task(1), task(CRASH)])
        assert all(isinstance(outcome, InternalError) for outcome in outcomes)
        [outcome] = await worker.run([task(1)])
        assert outcome.token_ids == (1,)

    working(worker, scenario)


def test_a_wrong_number_of_outcomes_is_a_failed_batch():
    class Forgetful(FakeEngine):
        def run(self, tasks):
            return super().run(tasks)[1:]

    assert all(
        isinstance(outcome, InternalError) for outcome in run_batch(Forgetful(), [task(1), task(2)], BatchReport())
    )


def test_outcomes_that_cannot_be_sent_fail_the_batch_alone(capfd):
    async def scenario(worker, _):
        [outcome] = await worker.run([task(1)])
        assert isinstance(outcome, InternalError)

    working(ProcessWorker(make_unsendable_engine), scenario)


def test_a_dying_process_fails_its_batch_and_later_ones():
    async def scenario(worker, _):
        with pytest.raises(UnavailableError, match="exit code 3") as failed:
            await worker.run([task(DIE)])
        assert failed.value.reason == "WORKER_DIED"
        await worker.ended()
        with pytest.raises(UnavailableError):
            await worker.run([task(1)])

    working(ProcessWorker(make_engine), scenario)


def test_a_failed_load_is_one_line():
    with pytest.raises(ModelLoadError) as failed:
        working(ProcessWorker(fail_to_load), None)
    assert str(failed.value) == "no such model: 'nowhere' is neither a folder nor on the Hub"


def test_a_worker_that_never_started_can_be_stopped():
    asyncio.run(ProcessWorker(make_engine).stop())


def test_a_process_that_takes_long_to_go_stops_nobody_meanwhile():
    async def scenario(worker, _):
        running = asyncio.create_task(worker.run([task(DIE)]))
        longest, began = 0.0, time.monotonic()
        while not running.done():
            turn = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - turn)
        assert time.monotonic() - began >= DYING_SECONDS
        assert longest < DYING_SECONDS / 3
        with pytest.raises(UnavailableError, match="exit code 3"):
            await running

    working(ProcessWorker(make_slowly_dying_engine), scenario)


def test_a_process_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(process_worker, "EXIT_SECONDS", 0.5)

    async def scenario(worker, _):
        os.kill(worker.pid, signal.SIGSTOP)
        await worker.stop()
        assert worker.cause.startswith("was killed by SIGKILL")
        assert not psutil.pid_exists(worker.pid)
        await worker.stop()

    working(ProcessWorker(make_engine), scenario)


def descriptors():
    """How many are open and belong to something."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("turns", range(5))
def test_a_start_that_is_cancelled_leaves_nothing(turns):
    """Whether its pipe is not yet connected, or the process is there already."""

    async def run():
        worker = ProcessWorker(make_engine)
        starting = asyncio.create_task(worker.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait((starting,))
        await worker.stop()
        assert worker.pid is None or not psutil.pid_exists(worker.pid)

    multiprocessing.resource_tracker.ensure_running()  # the first process brings it along, and it stays
    before = descriptors()
    asyncio.run(asyncio.wait_for(run(), 30))
    assert descriptors() <= before


@pytest.mark.parametrize(
    "failing",
    ["socket.socketpair", "multiprocessing.connection.Pipe", "os.pipe", "multiprocessing.util.spawnv_passfds"],
)
def test_a_process_that_cannot_be_spawned_leaves_nothing(monkeypatch, failing):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def run():
        worker = ProcessWorker(make_engine)
        with monkeypatch.context() as patch:
            patch.setattr(failing, fail)
            with pytest.raises(ModelLoadError, match=r"its process cannot be started: .*Too many open files"):
                await worker.start()
        assert not worker.is_live
        await worker.stop()

    multiprocessing.resource_tracker.ensure_running()
    before, children = descriptors(), psutil.Process().children()
    asyncio.run(asyncio.wait_for(run(), 30))
    assert descriptors() <= before
    assert psutil.Process().children() == children


def test_a_stop_is_not_lost_where_the_process_ends_at_the_same_moment():
    """Whoever waits for the end and is told to stop must not go on, or the server would wait for it for ever."""

    async def scenario(steps):
        worker = ProcessWorker(make_engine)
        ending = asyncio.create_task(worker._ends())
        for _ in range(3):
            await asyncio.sleep(0)
        worker._ended.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        if ending.cancel():
            with pytest.raises(asyncio.CancelledError):
                await ending
        return ending.cancelled()

    assert asyncio.run(scenario(0))
    for steps in range(1, 4):
        asyncio.run(scenario(steps))
