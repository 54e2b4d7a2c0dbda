"""Admission, deadlines, cancellation and batches, on one event loop and without a port."""

import asyncio

import pytest
from neuron_attribution.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)
from neuron_attribution_server.config import ServerConfig
from neuron_attribution_server.scheduler import Scheduler
from neuron_attribution_server.tasks import AttributeTask, MemoryCost, ProjectOutcome

OUTCOME = ProjectOutcome(())


def task(tokens):
    return AttributeTask(token_ids=tuple(range(tokens)))


class GatedWorker:
    """A worker whose batches wait for `gate`, and which remembers them by the sizes of their tasks."""

    capacity = 1
    is_live = True

    def __init__(self):
        self.gate = asyncio.Event()
        self.running = asyncio.Event()
        self.batches = []

    async def ready(self):
        pass

    async def run(self, tasks):
        self.batches.append([task.tokens for task in tasks])
        self.running.set()
        await self.gate.wait()
        return [OUTCOME] * len(tasks)


def scheduling(scenario, worker_type=GatedWorker, **settings):
    """Run `scenario(scheduler, worker, submit)`; `submit` starts a submission and lets it reach the queue."""

    async def run():
        worker = worker_type()
        scheduler = Scheduler(worker, ServerConfig(model="fake", **settings), MemoryCost(available=100, per_token=1))
        running = asyncio.create_task(scheduler.run())

        async def submit(tokens, deadline=None):
            submission = asyncio.create_task(scheduler.submit(task(tokens), deadline))
            await asyncio.sleep(0)  # one turn of the loop, so that it is in the queue
            return submission

        await scenario(scheduler, worker, submit)
        running.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_what_arrives_while_the_worker_is_busy_shares_the_next_batch():
    async def scenario(scheduler, worker, submit):
        submissions = [await submit(1)]
        await worker.running.wait()
        submissions += [await submit(2), await submit(3)]
        worker.gate.set()
        deliveries = await asyncio.gather(*submissions)
        assert worker.batches == [[1], [2, 3]]
        assert all(delivery.queue >= 0 for delivery in deliveries)

    scheduling(scenario)


def test_an_idle_worker_waits_for_calls_on_their_way_until_the_batch_is_full():
    async def scenario(scheduler, worker, submit):
        worker.gate.set()
        with scheduler.expecting():
            await asyncio.gather(await submit(1), await submit(2))
        assert worker.batches == [[1, 2]]

    scheduling(scenario, maximum_wait=60, batch_requests=2)


def test_a_lone_call_waits_for_nobody():
    async def scenario(scheduler, worker, submit):
        worker.gate.set()
        await (await submit(1))
        with scheduler.expecting():
            waiting = await submit(2)
        await waiting
        assert worker.batches == [[1], [2]]

    scheduling(scenario, maximum_wait=3600)


def test_a_batch_takes_no_more_memory_than_is_free():
    """The memory model of these tests gives room for 100 tokens; the padded budget would take all of them."""

    async def scenario(scheduler, worker, submit):
        submissions = [await submit(1)]
        await worker.running.wait()
        submissions += [await submit(40), await submit(50), await submit(20)]
        worker.gate.set()
        await asyncio.gather(*submissions)
        assert worker.batches == [[1], [40, 50], [20]]

    scheduling(scenario, batch_tokens=1000)


def test_batches_keep_the_order_and_the_padded_budget():
    async def scenario(scheduler, worker, submit):
        submissions = [await submit(1)]
        await worker.running.wait()
        submissions += [await submit(tokens) for tokens in (4, 4, 3, 30, 1)]
        worker.gate.set()
        await asyncio.gather(*submissions)
        assert worker.batches == [[1], [4, 4], [3], [30], [1]]

    scheduling(scenario, batch_tokens=10)


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def scenario(scheduler, worker, submit):
        first = await submit(1)
        await worker.running.wait()
        second = await submit(1)
        with pytest.raises(ResourceExhaustedError) as refused:
            await scheduler.submit(task(1), None)
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.retry_after > 0
        worker.gate.set()
        await asyncio.gather(first, second)
        await scheduler.submit(task(1), None)

    scheduling(scenario, queued_requests=1)


def test_waiting_tokens_are_bounded_too():
    async def scenario(scheduler, worker, submit):
        await submit(1)
        await worker.running.wait()
        await submit(6)
        with pytest.raises(ResourceExhaustedError, match="6 tokens are waiting"):
            await scheduler.submit(task(5), None)
        await submit(4)

    scheduling(scenario, queued_tokens=10, maximum_tokens=10)


def test_work_whose_deadline_passed_never_runs():
    async def scenario(scheduler, worker, submit):
        first = await submit(1)
        await worker.running.wait()
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit(task(2), asyncio.get_running_loop().time() + 0.01)
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit(task(3), asyncio.get_running_loop().time() - 1)
        worker.gate.set()
        await first
        await scheduler.submit(task(4), None)
        assert worker.batches == [[1], [4]]

    scheduling(scenario)


def test_a_running_task_is_not_waited_for_after_its_deadline():
    async def scenario(scheduler, worker, submit):
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit(task(1), asyncio.get_running_loop().time() + 0.05)
        assert worker.batches == [[1]]

    scheduling(scenario)


def test_a_cancelled_call_leaves_the_queue_and_its_room():
    async def scenario(scheduler, worker, submit):
        first = await submit(1)
        await worker.running.wait()
        cancelled = await submit(2)
        cancelled.cancel()
        await asyncio.wait((cancelled,))
        third = await submit(3)
        worker.gate.set()
        await asyncio.gather(first, third)
        assert worker.batches == [[1], [3]]

    scheduling(scenario, queued_requests=1)


def test_a_task_that_fails_fails_alone():
    class FailingWorker(GatedWorker):
        async def run(self, tasks):
            return [FailedPreconditionError("no") if task.tokens == 1 else OUTCOME for task in tasks]

    async def scenario(scheduler, worker, submit):
        failed, fine = await asyncio.gather(await submit(1), await submit(2), return_exceptions=True)
        assert isinstance(failed, FailedPreconditionError)
        assert fine.outcome is OUTCOME

    scheduling(scenario, FailingWorker)


def test_a_dead_worker_fails_everything_that_waits():
    class DeadWorker(GatedWorker):
        async def run(self, tasks):
            raise UnavailableError("dead", reason="WORKER_DIED")

    async def scenario(scheduler, worker, submit):
        for error in await asyncio.gather(await submit(1), await submit(2), return_exceptions=True):
            assert isinstance(error, UnavailableError)

    scheduling(scenario, DeadWorker, batch_requests=1)
