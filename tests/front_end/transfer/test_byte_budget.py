"""The budget by itself: who may hold how much, who waits, whose turn it is, and what is taken back."""

import asyncio
import random

import pytest
from neuron_attribution.errors import ResourceExhaustedError
from neuron_attribution_server.front_end.calls.tenants import current_tenant
from neuron_attribution_server.front_end.transfer import byte_budget, lent_room
from neuron_attribution_server.front_end.transfer.byte_budget import ByteBudget, Held

WHAT = Held("things", "THINGS")


def on_a_loop(test):
    """Run a test that is a coroutine function."""
    return lambda: asyncio.run(asyncio.wait_for(test(), 30))


def of_tenant(budget, name, capacity=None):
    token = current_tenant.set(name)
    try:
        return budget.of_call(capacity)
    finally:
        current_tenant.reset(token)


@on_a_loop
async def test_a_call_a_tenant_and_the_server_have_bounds_of_their_own():
    budget = ByteBudget(WHAT, 100, 0.5)
    one, other, foreign = of_tenant(budget, "a", 30), of_tenant(budget, "a"), of_tenant(budget, "b")
    one.hold(30)
    for call, size in ((one, 1), (other, 21)):
        with pytest.raises(ResourceExhaustedError) as refused:
            call.hold(size)
        assert (refused.value.reason, refused.value.retry_after) == ("THINGS", byte_budget.RETRY_SECONDS)
    other.hold(20)
    foreign.hold(50)
    assert budget.held == 100
    with pytest.raises(ResourceExhaustedError):
        of_tenant(budget, "c").hold(1)


@on_a_loop
async def test_anonymous_callers_share_all_of_it():
    budget = ByteBudget(WHAT, 100, 0.1)
    budget.of_call().hold(60)
    budget.of_call().hold(40)
    assert budget.held == 100


@on_a_loop
async def test_what_is_too_large_has_room_where_nothing_else_is_held():
    budget = ByteBudget(WHAT, 10, 0.5)
    call = of_tenant(budget, "a", 5)
    with call.hold(1000):
        waiting = asyncio.create_task(call.room(1000))
        await asyncio.sleep(0)
        assert not waiting.done()
    (await waiting).release()
    assert budget.held == 0


@on_a_loop
async def test_calls_take_turns_and_nobody_overtakes_the_one_that_the_server_is_short_for():
    budget = ByteBudget(WHAT, 10, 1)
    held = budget.of_call().hold(8)
    calls, order = [budget.of_call() for _ in range(3)], []

    async def hold(name, call, size):
        with await call.room(size):
            order.append(name)
            await asyncio.sleep(0)

    wanted = [("large", 0, 9), ("a1", 1, 2), ("a2", 1, 2), ("b", 2, 2)]
    tasks = [asyncio.create_task(hold(name, calls[index], size)) for name, index, size in wanted]
    await asyncio.sleep(0.01)
    assert order == [], "the large one is short of room, and first"
    held.release()
    await asyncio.gather(*tasks)
    assert order == ["large", "a1", "b", "a2"]


@on_a_loop
async def test_a_call_or_tenant_that_is_full_is_overtaken():
    budget = ByteBudget(WHAT, 100, 0.2)
    full, free = of_tenant(budget, "a"), of_tenant(budget, "b")
    full.hold(20)
    waiting = asyncio.create_task(full.room(5))
    await asyncio.sleep(0)
    free.hold(20)
    assert not waiting.done()
    waiting.cancel()


@on_a_loop
async def test_whoever_gives_up_holds_nothing_and_is_in_nobodys_way():
    budget = ByteBudget(WHAT, 10, 1)
    held = budget.of_call().hold(5)
    first = asyncio.create_task(budget.of_call().room(9))
    second = asyncio.create_task(budget.of_call().room(5))
    await asyncio.sleep(0)
    assert not second.done()
    first.cancel()
    await asyncio.wait({first, second})
    second.result().release()
    third = asyncio.create_task(budget.of_call().room(9))
    await asyncio.sleep(0)
    held.release()
    third.cancel()  # it has room already, and does not know yet
    await asyncio.wait({third})
    assert budget.held == 0


@on_a_loop
async def test_who_waits_in_vain_is_in_nobodys_way():
    budget = ByteBudget(WHAT, 10, 1)
    budget.of_call().hold(5)
    second = asyncio.create_task(budget.of_call().room(9, 0.05))
    third = asyncio.create_task(budget.of_call().room(5))
    with pytest.raises(TimeoutError):
        await second
    (await third).release()
    assert budget.held == 5


@on_a_loop
async def test_too_many_waiting_calls_are_refused():
    budget = ByteBudget(WHAT, 1, 1)
    budget.of_call().hold(1)
    tasks = [asyncio.create_task(budget.of_call().room(1)) for _ in range(byte_budget.MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError):
        await budget.of_call().room(1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def test_what_is_lent_is_taken_back_for_who_waits_the_longest_lent_first(monkeypatch):
    monkeypatch.setattr(lent_room, "LEAST_LENDING_SECONDS", 0.2)
    taken = []

    async def run():
        budget = ByteBudget(WHAT, 3, 1)
        lent = [budget.of_call().hold(1) for _ in range(3)]
        for index, holding in enumerate(lent):
            holding.lend(lambda index=index: taken.append(index))
        lent[0].keep()
        await asyncio.sleep(0.3)
        assert taken == [], "nobody waits"
        with await budget.of_call().room(1):
            assert taken == [1]
        lent[2].keep()
        lent[2].lend(lambda: taken.append("not long enough"))
        begun = asyncio.get_running_loop().time()
        with await budget.of_call().room(2):
            assert asyncio.get_running_loop().time() - begun >= 0.1
        assert budget.held == 1

    asyncio.run(asyncio.wait_for(run(), 30))
    assert taken == [1, "not long enough"]


@on_a_loop
async def test_nothing_is_lost_and_nobody_is_forgotten():
    """Many calls of several tenants hold, wait, resize, give up and release in any order; all get room in the end."""
    choose = random.Random(5)
    budget = ByteBudget(WHAT, 100, 0.4)
    most = 0

    async def run(call):
        nonlocal most
        with await call.room(choose.randint(1, 50)) as holding:
            most = max(most, budget.held)
            await asyncio.sleep(choose.random() / 1000)
            holding.resize(choose.randint(1, holding.size))
            await asyncio.sleep(choose.random() / 1000)

    calls = [of_tenant(budget, choose.choice("abc"), choose.choice((10, 60))) for _ in range(50)]
    tasks = [asyncio.create_task(run(choose.choice(calls))) for _ in range(500)]
    for task in choose.sample(tasks, 100):
        asyncio.get_running_loop().call_later(choose.random() / 20, task.cancel)
    await asyncio.wait(tasks)
    assert sum(task.cancelled() for task in tasks) <= 100
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert most <= 100
    assert budget.held == 0
    with budget.of_call().hold(100):
        pass
