"""Work that takes long: short tasks go first inside it, it stops when nobody waits, and accounts go by what it took."""

import asyncio

import pytest
from neuron_attribution.errors import DeadlineExceededError, UnavailableError
from neuron_attribution_server.front_end.observability.metrics import Metrics
from neuron_attribution_server.front_end.scheduling.batch_observer import BatchObserver
from neuron_attribution_server.front_end.scheduling.scheduler import Scheduler
from neuron_attribution_server.front_end.workers.interface import Listener
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.answers import ProjectOutcome
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.model_facts import WorkPrices
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from neuron_attribution_server.tasks.work_prices import WorkPredictor
from service.fakes import SIZES
from service.faulty_engines import ENDLESS, make_engine_with_checkpoints

OUTCOME = ProjectOutcome(())
LONG, SHORT = 90, 18
"""Tokens of tasks; twenty take a second."""


class HeldWorker:
    """Batches run until `ended` is set, or their listener stops them; those that interrupt end at once."""

    capacity = 1
    is_live = True

    def __init__(self):
        self.ended = asyncio.Event()
        self.free = asyncio.Event()
        self.free.set()
        self.running = asyncio.Event()
        self.batches = []
        self.inside = []
        self.stopped = 0
        self.has_prepared = False

    async def ready(self):
        pass

    async def run(self, tasks, listener):
        await self.free.wait()
        self.batches.append([task.tokens for task in tasks])
        listener.begins(self._stop)
        self.running.set()
        await self.ended.wait()
        listener.reported(BatchReport(seconds=7.0, tasks=len(tasks), has_prepared=self.has_prepared))
        return [OUTCOME] * len(tasks)

    async def interrupt(self, tasks, listener):
        self.inside.append([task.tokens for task in tasks])
        listener.begins(lambda: None)
        return [OUTCOME] * len(tasks)

    def _stop(self):
        self.stopped += 1
        self.ended.set()


def scheduling(scenario, memory=1000, price=0.05, **settings):
    async def run():
        worker = HeldWorker()
        config = ServerConfig(model="fake", **settings)
        predictor = WorkPredictor(WorkPrices(price if isinstance(price, dict) else {"TOKEN": price}), SIZES)
        cost = MemoryCost(available=memory, per_token=1)
        scheduler = Scheduler(worker, config, cost, predictor, BatchObserver(Metrics()))
        running = asyncio.create_task(scheduler.run())

        async def submit(tokens, deadline=None):
            task = AttributeTask(token_ids=tuple(range(tokens)))
            submission = asyncio.create_task(scheduler.submit(task, deadline))
            await asyncio.sleep(0)
            return submission

        await scenario(scheduler, worker, submit)
        running.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.fixture
def quick(monkeypatch):
    """Short is what takes a fifth of a second, at a price of a hundredth for a token."""
    monkeypatch.setattr("neuron_attribution_server.front_end.scheduling.scheduler.SHORT_SECONDS", 0.2)


def test_short_tasks_run_inside_a_long_one_which_goes_on():
    async def scenario(_, worker, submit):
        long = await submit(LONG)
        await worker.running.wait()
        for _ in range(3):
            delivery = await (await submit(SHORT))
            assert delivery.predicted == pytest.approx(0.9)
        assert worker.inside == [[SHORT]] * 3
        assert not long.done()
        worker.ended.set()
        await long

    scheduling(scenario)


def test_long_tasks_wait_for_the_one_that_runs():
    async def scenario(_, worker, submit):
        await submit(LONG)
        await worker.running.wait()
        second = await submit(LONG)
        await (await submit(SHORT))
        assert not second.done()
        assert (worker.batches, worker.inside) == ([[LONG]], [[SHORT]])

    scheduling(scenario, batch_seconds=5.0)


@pytest.mark.usefixtures("quick")
def test_a_short_one_that_takes_longer_than_it_should_is_interrupted_as_well():
    """What it is predicted to take is not all that may keep it: it may be the first to need what is not prepared."""

    async def scenario(_, worker, submit):
        overdue = await submit(SHORT)
        await worker.running.wait()
        second = await submit(SHORT)
        await second
        assert worker.inside == [[SHORT]]
        assert not overdue.done()
        worker.ended.set()
        await overdue

    scheduling(scenario, price=0.01)


async def together(worker, submit, tokens):
    """Submissions that run as one batch, after one that has ended, of which nothing is learnt."""
    worker.has_prepared = True
    blocking = await submit(1)
    await worker.running.wait()
    submissions = [await submit(count) for count in tokens]
    worker.ended.set()
    await blocking
    worker.ended.clear()
    while len(worker.batches) < 2:
        await asyncio.sleep(0)
    return submissions


@pytest.mark.usefixtures("quick")
def test_a_batch_of_short_ones_may_take_as_long_as_all_of_them_should():
    """Two of 0.18 seconds: what comes later may go inside after 0.72 and not after 0.4."""

    async def scenario(_, worker, submit):
        pair = await together(worker, submit, [SHORT, SHORT])
        third = await submit(SHORT)
        await asyncio.sleep(0.5)
        assert (worker.batches[1], worker.inside) == ([SHORT, SHORT], [])
        await third
        assert worker.inside == [[SHORT]]
        worker.ended.set()
        await asyncio.gather(*pair)

    scheduling(scenario, price=0.01)


@pytest.mark.usefixtures("quick")
def test_time_counts_from_when_a_device_has_the_batch():
    """A worker that comes back may have lost batches to run before."""

    async def scenario(_, worker, submit):
        worker.free.clear()
        first = await submit(SHORT)
        await asyncio.sleep(0.5)
        worker.free.set()
        await worker.running.wait()
        second = await submit(SHORT)
        await asyncio.sleep(0.1)
        assert worker.inside == []
        worker.ended.set()
        await asyncio.gather(first, second)

    scheduling(scenario, price=0.01)


@pytest.mark.usefixtures("quick")
def test_what_is_not_short_waits_for_short_ones_that_are_overdue():
    """Eight that take 1.5 seconds one by one, and 0.24 together; a short task goes inside, one of 0.44 does not."""

    async def scenario(_, worker, submit):
        overdue = await together(worker, submit, [4] * 8)
        waiting = await submit(130)
        await (await submit(2))
        assert (worker.batches[1], worker.inside) == ([4] * 8, [[2]])
        await asyncio.sleep(0.1)
        assert not waiting.done()
        worker.ended.set()
        await asyncio.gather(waiting, *overdue)

    scheduling(scenario, price={"TOKEN": 0.002, "BATCH": 0.18})


def test_tasks_much_shorter_than_the_long_one_run_inside_it_too():
    """2.7 seconds are not short, but the long one takes 18."""

    async def scenario(_, worker, submit):
        long = await submit(360)
        await worker.running.wait()
        await (await submit(54))
        assert worker.inside == [[54]]
        waiting = await submit(162)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert not long.done()

    scheduling(scenario)


def test_where_everything_takes_long_a_short_attribution_still_goes_first():
    """A token takes a second here, or the device is that busy."""

    async def scenario(_, worker, submit):
        long = await submit(LONG)
        await worker.running.wait()
        delivery = await (await submit(5))
        assert (delivery.predicted, worker.inside) == (pytest.approx(5.0), [[5]])
        assert not long.done()

    scheduling(scenario, price=1.0)


def test_where_everything_takes_long_so_does_one_with_a_few_more_neurons():
    """Two attributions of 16 tokens would take 32 seconds; what takes more is no longer short."""

    async def scenario(_, worker, submit):
        await submit(LONG)
        await worker.running.wait()
        await (await submit(31))
        waiting = await submit(33)
        await asyncio.sleep(0.1)
        assert (worker.inside, waiting.done()) == ([[31]], False)

    scheduling(scenario, price=1.0)


def test_what_runs_inside_is_as_much_as_is_predicted_to_take_two_seconds_together():
    """Three share most of the work; one by one they would take 2.8 seconds."""

    async def scenario(_, worker, submit):
        await submit(2 * LONG)
        await worker.running.wait()
        waiting = [await submit(4) for _ in range(4)]
        await asyncio.gather(*waiting)
        assert worker.inside == [[4], [4, 4, 4]]

    scheduling(scenario, price={"TOKEN": 0.01, "BATCH": 0.9})


def test_a_batch_of_short_ones_is_as_much_as_is_predicted_to_take_two_seconds_together():
    """Whoever comes next waits for all of it: six that take 0.9 seconds each make three batches."""

    async def scenario(_, worker, submit):
        submissions = await together(worker, submit, [SHORT] * 6)
        worker.ended.set()
        await asyncio.gather(*submissions)
        assert worker.batches[1:] == [[SHORT, SHORT]] * 3

    scheduling(scenario)


def test_short_tasks_wait_for_the_batch_of_other_short_ones():
    async def scenario(_, worker, submit):
        await submit(SHORT)
        await worker.running.wait()
        waiting = await submit(SHORT)
        await asyncio.sleep(0.1)
        assert worker.inside == []
        assert not waiting.done()

    scheduling(scenario)


def test_what_the_long_one_leaves_no_memory_for_waits():
    async def scenario(_, worker, submit):
        await submit(LONG)
        await worker.running.wait()
        waiting = await submit(SHORT)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert worker.inside == []
        worker.ended.set()
        await waiting

    scheduling(scenario, memory=LONG)


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_batch_is_stopped_when_the_last_who_waits_for_it_leaves(how):
    async def scenario(_, worker, submit):
        deadline = asyncio.get_running_loop().time() + 0.2 if how == "late" else None
        first = await submit(LONG, deadline)
        await worker.running.wait()
        if how == "cancelled":
            first.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else DeadlineExceededError):
            await first
        assert worker.stopped == 1

    scheduling(scenario)


def test_a_batch_goes_on_while_anyone_waits_for_it():
    async def scenario(_, worker, submit):
        blocking = await submit(SHORT)
        await worker.running.wait()
        first, second = await submit(LONG), await submit(LONG)
        worker.ended.set()
        await blocking
        worker.ended.clear()
        while len(worker.batches) < 2:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0.05)
        assert (worker.batches[1], worker.stopped) == ([LONG, LONG], 0)
        worker.ended.set()
        await second

    scheduling(scenario)


def test_predictions_follow_what_batches_took():
    async def scenario(scheduler, worker, submit):
        worker.ended.set()
        before = (await (await submit(LONG))).predicted
        for _ in range(30):
            await (await submit(LONG))
        after = (await (await submit(LONG))).predicted
        assert (before, after) == (pytest.approx(4.5), pytest.approx(7.0, rel=0.02))

    scheduling(scenario)


def test_what_a_batch_does_for_all_to_come_is_no_measure_of_it():
    async def scenario(_, worker, submit):
        worker.ended.set()
        worker.has_prepared = True
        before = (await (await submit(LONG))).predicted
        for _ in range(5):
            await (await submit(LONG))
        assert (await (await submit(LONG))).predicted == before

    scheduling(scenario)


class Hearing(Listener):
    def __init__(self):
        self.stop = None
        self.report = None

    def begins(self, stop):
        self.stop = stop

    def reported(self, report):
        self.report = report


def in_a_process(scenario):
    async def run():
        worker = ProcessWorker(make_engine_with_checkpoints, batch_timeout=2.0)
        try:
            await worker.start()
            await scenario(worker)
        finally:
            await worker.stop()

    asyncio.run(asyncio.wait_for(run(), 30))


def task(*ids):
    return AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1),))


async def reported(listener):
    while listener.report is None:
        await asyncio.sleep(0.01)
    return listener.report


@pytest.mark.process
def test_a_process_runs_what_comes_inside_a_batch_and_stops_it_when_told_to():
    async def scenario(worker):
        long, inside = Hearing(), Hearing()
        running = asyncio.create_task(worker.run([task(ENDLESS)], long))
        await asyncio.sleep(0.3)
        [answer] = await worker.run([task(1)], inside)
        assert answer.token_ids == (1,)
        assert not running.done()
        long.stop()
        [stopped] = await running
        assert stopped.reason == "UNWANTED"
        report = await reported(long)
        assert report.stopped
        assert report.seconds > 0.2
        [answer] = await worker.run([task(1)])
        assert answer.token_ids == (1,)

    in_a_process(scenario)


@pytest.mark.process
def test_the_time_of_what_goes_first_counts_for_itself_alone():
    async def scenario(worker):
        long, inside = Hearing(), Hearing()
        running = asyncio.create_task(worker.run([task(ENDLESS)], long))
        await asyncio.sleep(0.1)
        await worker.run([task(1, 1, 1, 1)], inside)  # each token takes a tenth of a second
        long.stop()
        await running
        first, second = await reported(long), await reported(inside)
        assert second.seconds >= 0.4
        assert first.seconds < second.seconds

    in_a_process(scenario)


@pytest.mark.process
def test_a_batch_that_hangs_between_checkpoints_is_killed_with_what_waits_inside():
    async def scenario(worker):
        running = asyncio.create_task(worker.run([task(ENDLESS)]))
        await asyncio.sleep(0)
        for _ in range(3):  # together longer than the time of a batch, which stands still meanwhile
            await worker.run([task(*(1,) * 9)])
        assert not running.done()
        hanging = asyncio.create_task(worker.run([task(ENDLESS)]))
        with pytest.raises(UnavailableError, match="batch_timeout"):
            await hanging
        with pytest.raises(UnavailableError, match="batch_timeout"):
            await running

    in_a_process(scenario)
