"""Admission, deadlines, cancellation and batches, on one event loop and without a port."""

import asyncio
from contextlib import contextmanager
from statistics import median

import pytest
from neuron_attribution.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from neuron_attribution_server.front_end.calls.tenants import current_tenant
from neuron_attribution_server.front_end.observability.metrics import Metrics
from neuron_attribution_server.front_end.scheduling.batch_observer import BatchObserver
from neuron_attribution_server.front_end.scheduling.scheduler import Scheduler
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.answers import ProjectOutcome
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.model_facts import WorkPrices
from neuron_attribution_server.tasks.tasks import AttributeTask
from neuron_attribution_server.tasks.work_prices import WorkPredictor
from service.fakes import SIZES

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
        self.capacity = 1

    async def ready(self):
        pass

    async def run(self, tasks, listener):
        self.batches.append([task.tokens for task in tasks])
        self.running.set()
        await self.gate.wait()
        return [OUTCOME] * len(tasks)


@contextmanager
def calls_of(tenant):
    """What is submitted here is this tenant's."""
    token = current_tenant.set(tenant)
    try:
        yield
    finally:
        current_tenant.reset(token)


def scheduling(scenario, worker_type=GatedWorker, prices=None, **settings):
    """Run `scenario(scheduler, worker, submit)`; `submit` starts a submission and lets it reach the queue."""

    async def run():
        worker = worker_type()
        config, memory = ServerConfig(model="fake", **settings), MemoryCost(available=100, per_token=1)
        predictor = WorkPredictor(WorkPrices(prices or {}), SIZES)
        scheduler = Scheduler(worker, config, memory, predictor, BatchObserver(Metrics()))
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


def test_batches_keep_the_padded_budget():
    async def scenario(scheduler, worker, submit):
        submissions = [await submit(1)]
        await worker.running.wait()
        submissions += [await submit(tokens) for tokens in (4, 4, 3, 30, 1)]
        worker.gate.set()
        await asyncio.gather(*submissions)
        assert worker.batches == [[1], [4, 4], [3, 1], [30]]

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
        with pytest.raises(ResourceExhaustedError, match="1 requests with 6 tokens are waiting, 5 more tokens"):
            await scheduler.submit(task(5), None)
        await submit(4)

    scheduling(scenario, queued_tokens=10, maximum_tokens=10)


def test_one_tenant_may_fill_half_of_the_queue_and_anonymous_callers_all_of_it():
    async def scenario(scheduler, worker, submit):
        await submit(1)
        await worker.running.wait()
        with calls_of("one"):
            await submit(1), await submit(1)
            with pytest.raises(ResourceExhaustedError, match="2 requests of yours") as refused:
                await scheduler.submit(task(1), None)
        assert refused.value.reason == "TENANT_QUEUE_FULL"
        assert refused.value.retry_after > 0
        with calls_of("another"):
            await submit(30)  # more than half of the tokens, but the only one
            with pytest.raises(ResourceExhaustedError, match="30 tokens are waiting"):
                scheduler.check_room()
        await submit(1)
        with pytest.raises(ResourceExhaustedError) as refused:
            scheduler.check_room()
        assert refused.value.reason == "QUEUE_FULL"

    scheduling(scenario, queued_requests=4, queued_tokens=40, maximum_tokens=30)


def test_the_time_to_come_back_after_grows_with_the_work_that_waits_and_differs_between_callers():
    async def scenario(scheduler, worker, submit):
        await submit(1)
        await worker.running.wait()
        for _ in range(8):
            await submit(1)
        delays = set()
        for _ in range(20):
            with pytest.raises(ResourceExhaustedError) as refused:
                scheduler.check_room()
            delays.add(refused.value.retry_after)
        assert len(delays) > 1
        assert min(delays) >= 8 * 0.5 * 0.8
        assert max(delays) < 30

    scheduling(scenario, prices={"TOKEN": 0.5}, queued_requests=8, batch_requests=2)


def test_a_worker_with_room_for_two_runs_two_batches_at_the_same_time():
    async def scenario(scheduler, worker, submit):
        worker.capacity = 2
        submissions = []
        for tokens in (1, 2, 3, 4):
            submissions.append(await submit(tokens))
            await asyncio.sleep(0.01)
        assert worker.batches == [[1], [2]]
        worker.gate.set()
        await asyncio.gather(*submissions)
        assert worker.batches == [[1], [2], [3, 4]]

    scheduling(scenario)


def test_a_flood_of_one_tenant_does_not_delay_another():
    """Alone a call takes one batch; beside the flood it also waits for the running one. First come, first served would
    have it wait for the 25 batches of the flood that always wait."""

    class TimedWorker(GatedWorker):
        async def run(self, tasks, listener):
            await asyncio.sleep(0.05)
            return [OUTCOME] * len(tasks)

    async def latencies(scheduler, count):
        clock, measured = asyncio.get_running_loop().time, []
        for _ in range(count):
            started = clock()
            with calls_of("light"):
                await scheduler.submit(task(5), None)
            measured.append(clock() - started)
        return measured

    async def scenario(scheduler, worker, submit):
        async def flood():
            with calls_of("flood"):
                while True:
                    await scheduler.submit(task(5), None)

        alone = await latencies(scheduler, 10)
        flooding = [asyncio.create_task(flood()) for _ in range(100)]
        await asyncio.sleep(0.1)
        beside = await latencies(scheduler, 20)
        for each in flooding:
            each.cancel()
        assert median(beside) < 5 * median(alone)

    scheduling(scenario, TimedWorker, batch_requests=4)


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


def test_only_calls_that_still_wait_hear_that_their_batch_is_computed():
    class TellingWorker(GatedWorker):
        async def run(self, tasks, listener):
            outcomes = await super().run(tasks, listener)
            listener.computed()
            return outcomes

    async def scenario(scheduler, worker, submit):
        heard = []
        calls = [
            asyncio.create_task(scheduler.submit(task(tokens), None, lambda tokens=tokens: heard.append(tokens)))
            for tokens in (1, 2)
        ]
        await worker.running.wait()
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        worker.gate.set()
        await calls[1]
        assert worker.batches == [[1, 2]]
        assert heard == [2]

    scheduling(scenario, TellingWorker)


def test_a_task_that_fails_fails_alone():
    class FailingWorker(GatedWorker):
        async def run(self, tasks, listener):
            return [FailedPreconditionError("no") if task.tokens == 1 else OUTCOME for task in tasks]

    async def scenario(scheduler, worker, submit):
        failed, fine = await asyncio.gather(await submit(1), await submit(2), return_exceptions=True)
        assert isinstance(failed, FailedPreconditionError)
        assert fine.outcome is OUTCOME

    scheduling(scenario, FailingWorker)


def test_a_bug_in_the_worker_fails_one_batch_and_no_later_one():
    class BuggyWorker(GatedWorker):
        async def run(self, tasks, listener):
            if tasks[0].tokens == 1:
                raise ZeroDivisionError
            return [OUTCOME]

    async def scenario(scheduler, worker, submit):
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await scheduler.submit(task(1), None)
        assert (await scheduler.submit(task(2), None)).outcome is OUTCOME

    scheduling(scenario, BuggyWorker)


def test_a_dead_worker_fails_everything_that_waits():
    class DeadWorker(GatedWorker):
        async def run(self, tasks, listener):
            raise UnavailableError("dead", reason="WORKER_DIED")

    async def scenario(scheduler, worker, submit):
        for error in await asyncio.gather(await submit(1), await submit(2), return_exceptions=True):
            assert isinstance(error, UnavailableError)

    scheduling(scenario, DeadWorker, batch_requests=1)
