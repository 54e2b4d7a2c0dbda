"""The queue alone: each task that joins is taken once, within the budget, in a fair and bounded order."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuron_attribution.errors import ResourceExhaustedError
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS
from neuron_attribution_server.front_end.scheduling.batches import PADDED_PER_TOKEN, BatchLimits, padded_tokens
from neuron_attribution_server.front_end.scheduling.request_queue import QueuedTask, QueueLimits, RequestQueue
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import AttributeTask, ProjectTask

FOR_EVER = 1e9


class Caller:
    """Stands where a call's future stands."""

    def __init__(self):
        self.cancelled = False

    def done(self):
        return self.cancelled


def queued(tokens, tenant="one", enqueued=0.0, deadline=None, seconds=0.0):
    task = AttributeTask(token_ids=tuple(range(tokens)))
    return QueuedTask(task, tenant, enqueued, deadline, Caller(), seconds=seconds, is_short=seconds <= 1.0)


def queued_projection(tenant="one"):
    return QueuedTask(ProjectTask(neurons=(FfnNeuron(0, 1),)), tenant, 0.0, None, Caller())


def request_queue(
    requests=10**6,
    tokens=10**6,
    share=1.0,
    batch_requests=4,
    batch_tokens=64,
    memory=10**6,
    maximum_age=FOR_EVER,
    seconds=1e9,
    batch_seconds=1e9,
):
    cost = MemoryCost(available=memory, per_token=1)
    return RequestQueue(
        QueueLimits(requests=requests, tokens=tokens, seconds=seconds, tenant_share=share),
        BatchLimits(requests=batch_requests, tokens=batch_tokens, memory=cost, seconds=batch_seconds),
        maximum_age,
    )


def popped(queue, now=0.0):
    """All batches, until nothing waits."""
    while queue:
        yield queue.pop_batch(now)


def tokens_of(batch):
    return [item.task.tokens for item in batch]


def filled(queue, items):
    for item in items:
        queue.add(item)
    return items


ARRIVALS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from("abc"), st.floats(0, 10)), min_size=1, max_size=40)
BOUNDS = st.fixed_dictionaries(
    {"batch_requests": st.integers(1, 6), "batch_tokens": st.integers(10, 100), "memory": st.integers(10, 100)}
)


def arrived(arrivals):
    """Tasks in the order of their arrival times."""
    return [queued(tokens, tenant, time) for tokens, tenant, time in sorted(arrivals, key=lambda arrival: arrival[2])]


@given(ARRIVALS, BOUNDS, st.floats(0, 10))
def test_every_task_is_taken_once_and_the_budget_is_kept_unless_alone(arrivals, bounds, maximum_age):
    queue = request_queue(**bounds, maximum_age=maximum_age)
    items = filled(queue, arrived(arrivals))
    taken = []
    for batch in popped(queue, now=10.0):
        tasks = [item.task for item in batch]
        assert batch
        assert len(batch) <= bounds["batch_requests"]
        assert len(batch) == 1 or padded_tokens(tasks) <= min(bounds["batch_tokens"], bounds["memory"])
        taken += batch
        assert queue.tokens == sum(item.task.tokens for item in items) - sum(item.task.tokens for item in taken)
    assert Counter(map(id, taken)) == Counter(map(id, items))


@given(ARRIVALS, BOUNDS)
def test_padding_never_outweighs_the_tasks_while_nothing_is_too_old(arrivals, bounds):
    queue = request_queue(**bounds)
    filled(queue, arrived(arrivals))
    for batch in popped(queue):
        assert padded_tokens([item.task for item in batch]) <= PADDED_PER_TOKEN * sum(tokens_of(batch))


@given(ARRIVALS, BOUNDS, st.floats(0, 10))
def test_nothing_is_taken_before_an_older_task_of_its_tenant_that_is_too_old(arrivals, bounds, maximum_age):
    now = 10.0
    queue = request_queue(**bounds, maximum_age=maximum_age)
    waiting = arrived(arrivals)
    filled(queue, waiting)
    for batch in popped(queue, now):
        waiting = [item for item in waiting if item not in batch]
        for item in batch:
            passed_over = [each for each in waiting if each.tenant == item.tenant and each.enqueued < item.enqueued]
            assert all(now - each.enqueued < maximum_age for each in passed_over)


@given(ARRIVALS, BOUNDS, st.floats(0, 10))
def test_nobody_waits_for_more_than_the_tasks_before_it_and_the_others_share(arrivals, bounds, maximum_age):
    """Each batch is led by the oldest task of the tenant that was given least: while a tenant waits, no other one is
    given more than it by over two batches."""
    queue = request_queue(**bounds, maximum_age=maximum_age)
    waiting = filled(queue, arrived(arrivals))
    slack = 2 * max(bounds["batch_tokens"], 40) + 40
    served = Counter()
    for batch in popped(queue, now=10.0):
        oldest = {tenant: next(item for item in waiting if item.tenant == tenant) for tenant in served_by(waiting)}
        assert batch[0] in oldest.values()
        waiting = [item for item in waiting if item not in batch]
        for item in batch:
            served[item.tenant] += item.task.tokens
        for tenant in served_by(waiting):
            assert max(served.values()) - served[tenant] <= slack


def served_by(items):
    return {item.tenant for item in items}


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "cancel", "pop"]), st.integers(0, 30)), max_size=60))
def test_what_waits_is_counted_exactly(steps):
    queue, waiting = request_queue(), []
    for now, (step, number) in enumerate(steps):
        if step == "add":
            item = queued(number + 1, "abc"[number % 3], now, deadline=now + 5 if number % 2 else None)
            waiting += filled(queue, [item])
        elif step == "pop":
            batch = queue.pop_batch(now)
            assert all(item.is_wanted(now) for item in batch)
            waiting = [item for item in waiting if item not in batch and item.is_wanted(now)]
        elif waiting:
            item = waiting[number % len(waiting)]
            if step == "discard":
                waiting.remove(item)
                queue.discard(item)
                queue.discard(item)  # twice does no harm
            item.delivery.cancelled = True
        assert len(queue) == len(waiting)
        assert queue.tokens == sum(tokens_of(waiting))


def test_tasks_of_similar_length_share_a_batch():
    queue = request_queue(batch_requests=3, batch_tokens=1000)
    filled(queue, [queued(tokens) for tokens in (100, 3, 90, 4, 80, 5)])
    assert [tokens_of(batch) for batch in popped(queue)] == [[100, 90, 80], [3, 4, 5]]


def test_two_tasks_share_a_batch_however_their_lengths_differ():
    queue = request_queue()
    filled(queue, [queued(1), queued(30), queued(1)])
    assert [sorted(tokens_of(batch)) for batch in popped(queue)] == [[1, 1], [30]]
    filled(queue, [queued(1), queued(30)])
    assert tokens_of(queue.pop_batch(0.0)) == [1, 30]


def test_short_tasks_share_no_batch_with_a_long_one():
    queue = request_queue()
    short, long = [queued(5), queued(5)], [queued(5, seconds=2.0), queued(5, seconds=3.0)]
    filled(queue, [short[0], long[0], short[1], long[1]])
    assert list(popped(queue)) == [short, long]


def test_long_tasks_share_a_batch_up_to_its_seconds():
    queue = request_queue(batch_seconds=5.0)
    tasks = filled(queue, [queued(5, seconds=seconds) for seconds in (2.0, 9.0, 2.5, 3.0)])
    assert list(popped(queue)) == [[tasks[0], tasks[2]], [tasks[1]], [tasks[3]]]


def test_short_tasks_are_taken_alone_in_the_order_between_tenants():
    queue = request_queue()
    long = queued(5, "one", seconds=4.0)
    short = [queued(5, "one", seconds=0.3), queued(5, "two", seconds=0.3), queued(5, "two", seconds=0.6)]
    filled(queue, [long, *short])
    limits = BatchLimits(requests=4, tokens=64, memory=MemoryCost(available=100), seconds=0.8)
    assert queue.pop_shorter(0.0, limits) == [short[0], short[1]]
    assert queue.pop_shorter(0.0, limits) == [short[2]]
    assert queue.pop_shorter(0.0, limits) == []
    assert queue.pop_batch(0.0) == [long]


def test_a_short_task_that_leaves_no_memory_to_a_long_one_waits():
    queue = request_queue()
    filled(queue, [queued(5)])
    tight = BatchLimits(requests=4, tokens=64, memory=MemoryCost(available=4, per_token=1), seconds=1.0)
    assert queue.pop_shorter(0.0, tight) == []
    [smaller] = filled(queue, [queued(4, "another", seconds=0.5)])
    assert queue.pop_shorter(0.0, tight) == [smaller], "nobody waits for one that does not fit"
    assert len(queue) == 1


def test_tenants_take_turns_by_seconds_and_by_what_was_really_taken():
    """Each is given as much time as the other, not as many tasks; what took longer than predicted counts as it was."""
    queue = request_queue(batch_requests=1)
    heavy = [queued(5, "heavy", seconds=4.0) for _ in range(3)]
    light = [queued(5, "light", seconds=1.5) for _ in range(8)]
    filled(queue, [*heavy, *light])
    order = [queue.pop_batch(0.0)[0].tenant for _ in range(5)]
    assert order == ["heavy", "light", "light", "light", "heavy"]
    queue.charge([heavy[1]], 13.0)
    assert [queue.pop_batch(0.0)[0].tenant for _ in range(5)] == ["light"] * 5


def test_what_was_never_taken_is_held_against_nobody():
    """A long task that is stopped at once costs its tenant little, and those who came meanwhile no more than that."""
    queue = request_queue(batch_requests=1)
    filled(queue, [queued(5, "long", seconds=98.0), *[queued(5, "long", seconds=0.5) for _ in range(9)]])
    long = queue.pop_batch(0.0)
    for _ in range(3):  # one at a time, away in between
        filled(queue, [queued(5, "other", seconds=0.5)])
        batch = queue.pop_batch(0.0)
        assert batch[0].tenant == "other"
        queue.charge(batch, 0.5)
    queue.charge(long, 1.0)
    filled(queue, [queued(5, "other", seconds=0.5) for _ in range(9)])
    leaders = [queue.pop_batch(0.0)[0].tenant for _ in range(8)]
    assert Counter(leaders)["other"] >= 3


def test_the_seconds_that_wait_are_bounded_for_all_and_for_each_tenant():
    queue = request_queue(seconds=10.0, share=0.5)
    queue.check_room("one", 1, 99.0, 0.5)  # an empty queue takes any
    filled(queue, [queued(1, "one", seconds=4.0)])
    with pytest.raises(ResourceExhaustedError) as refused:
        queue.check_room("one", 1, 2.0, 0.5)
    assert refused.value.reason == "TENANT_QUEUE_FULL"
    queue.check_room("two", 1, 5.9, 0.5)
    with pytest.raises(ResourceExhaustedError) as refused:
        queue.check_room("two", 1, 6.1, 0.5)
    assert refused.value.reason == "QUEUE_FULL"
    assert "4.0 and 6.1 seconds" in refused.value.message


def test_a_task_of_another_length_is_passed_over_until_it_is_too_old():
    """Short tasks keep coming; the long one is second in line and joins at its age, not at the end."""
    queue = request_queue(batch_requests=3, batch_tokens=1000, maximum_age=5.0)
    long = queued(90, enqueued=1.0)
    filled(queue, [queued(3), long])
    taken_at = None
    for now in range(1, 20):
        filled(queue, [queued(3, enqueued=now) for _ in range(3)])
        if long in queue.pop_batch(now) and taken_at is None:
            taken_at = now
    assert taken_at <= 6


def test_tenants_take_turns_within_a_batch():
    queue = request_queue(batch_requests=4)
    filled(queue, [queued(5, "flood") for _ in range(100)])
    filled(queue, [queued(5, "light") for _ in range(2)])
    assert Counter(item.tenant for item in queue.pop_batch(0.0)) == {"flood": 2, "light": 2}


def test_shares_are_counted_in_tokens():
    queue = request_queue(batch_requests=1, batch_tokens=1000)
    filled(queue, [queued(tokens, tenant) for _ in range(50) for tokens, tenant in ((30, "long"), (10, "short"))])
    first = [batch[0].tenant for batch, _ in zip(popped(queue), range(40), strict=False)]
    assert Counter(first) == {"short": 30, "long": 10}


def test_a_tenant_that_comes_back_finds_its_account_as_it_left_it():
    """One task at a time, each gone before the next comes: still no more than its share."""
    queue = request_queue(batch_requests=1, batch_tokens=1000)
    filled(queue, [queued(10, "steady") for _ in range(100)])
    visitor, leaders = queued(40, "visitor"), []
    queue.add(visitor)
    for _ in range(50):
        [leader] = queue.pop_batch(0.0)
        leaders.append(leader.tenant)
        if leader is visitor:
            visitor = queued(40, "visitor")
            queue.add(visitor)
    assert Counter(leaders) == {"steady": 40, "visitor": 10}


def test_a_newcomer_is_not_owed_what_it_missed():
    queue = request_queue(batch_requests=1, batch_tokens=1000)
    filled(queue, [queued(10, "steady") for _ in range(100)])
    for _ in range(50):
        queue.charge(queue.pop_batch(0.0), 1e-5)
    filled(queue, [queued(10, "newcomer") for _ in range(50)])
    leaders = Counter(queue.pop_batch(0.0)[0].tenant for _ in range(20))
    assert leaders == {"steady": 10, "newcomer": 10}


def test_a_long_task_of_a_busy_tenant_leads_a_batch_in_the_end():
    """It never fits beside others; were its tenant's short ones taken in its place, it would wait for ever."""
    queue = request_queue(batch_requests=2, batch_tokens=40, maximum_age=3.0)
    long = queued(40, "b", enqueued=0.5)
    filled(queue, [queued(1, "a"), queued(1, "b"), long])
    for now in range(1, 20):
        filled(queue, [queued(1, tenant, now) for tenant in "aabb"])
        if long in queue.pop_batch(now):
            break
    assert now <= 5


def test_room_is_refused_to_the_tenant_that_filled_its_share_only():
    queue = request_queue(requests=10, tokens=100, share=0.2)
    filled(queue, [queued(1, "one"), queued(1, "one")])
    for tenant in ("another", ANONYMOUS):
        queue.check_room(tenant, 1, 0.0, 0.5)
    with pytest.raises(ResourceExhaustedError) as refused:
        queue.check_room("one", 1, 0.0, 0.5)
    assert (refused.value.reason, refused.value.retry_after) == ("TENANT_QUEUE_FULL", 0.5)
    filled(queue, [queued(60, "another")])  # its only one may be as long as the queue allows
    with pytest.raises(ResourceExhaustedError):
        queue.check_room("another", 1, 0.0, 0.5)


def test_what_expired_is_dropped_when_a_batch_is_taken():
    queue = request_queue()
    items = filled(queue, [queued(5, deadline=float(deadline)) for deadline in range(1, 5)])
    assert queue.pop_batch(2.0) == items[2:]
    assert len(queue) == queue.tokens == 0


def test_batches_waiting_are_counted_by_what_is_scarcer():
    queue = request_queue(batch_requests=4, batch_tokens=100)
    assert queue.batches == 1
    filled(queue, [queued(1) for _ in range(12)])
    assert queue.batches == 3
    filled(queue, [queued(100) for _ in range(5)])
    assert queue.batches == 5


@given(ARRIVALS, BOUNDS)
def test_one_tenants_tasks_of_one_length_leave_in_order(arrivals, bounds):
    queue = request_queue(**bounds)
    filled(queue, [queued(7, enqueued=time) for *_, time in sorted(arrivals, key=lambda arrival: arrival[2])])
    taken = [item.enqueued for batch in popped(queue) for item in batch]
    assert all(first <= second for first, second in pairwise(taken))


def test_projections_share_no_batch_with_what_goes_through_the_model():
    """They take milliseconds, and would wait for all of it."""
    queue = request_queue()
    for item in (queued(5), queued_projection(), queued(5), queued_projection("another"), queued(5, "another")):
        queue.add(item)
    kinds = [{type(item.task) for item in batch} for batch in popped(queue)]
    assert sorted(map(len, kinds)) == [1, 1]
