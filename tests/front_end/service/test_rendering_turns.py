"""Whose conversation is rendered next, without a server: the work is held until the test lets it go."""

import asyncio
import threading
from contextlib import suppress

import pytest
from neuron_attribution.errors import ResourceExhaustedError
from neuron_attribution_server.front_end.calls.tenants import current_tenant
from neuron_attribution_server.front_end.conversations.renderer import PROCESSES
from neuron_attribution_server.front_end.service import rendering_turns
from neuron_attribution_server.front_end.service.rendering_turns import RenderingTurns
from service.servers import PATIENCE


class Held:
    """Work that says whose it is when it begins, and ends when it may."""

    def __init__(self, tenant=None):
        self.tenant, self.begun, self.released = tenant, threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.released.wait(PATIENCE)
        return self.tenant

    def ask(self, turns):
        """Ask for a turn, as the tenant."""
        if self.tenant is not None:
            current_tenant.set(self.tenant)
        return asyncio.create_task(turns.run(self))


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.setattr(rendering_turns, "WAIT_SECONDS", PATIENCE)
    return RenderingTurns(0.5)


async def asked(turns, *works):
    """The tasks that wait for works, whose callers asked one after another."""

    async def ask(work):
        return work.ask(turns)

    tasks = []
    for work in works:
        tasks.append(await asyncio.create_task(ask(work)))  # a context of its own
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    return tasks


def begun(works):
    return [work.begun.is_set() for work in works]


async def end(works, tasks):
    for work in works:
        work.released.set()
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)


def test_a_tenant_leaves_a_thread_to_others_and_anonymous_callers_need_not(turns):
    async def run():
        mine = [Held("mallory") for _ in range(3)]
        tasks = await asked(turns, *mine)
        assert begun(mine) == [True, False, False]
        other = Held("alice")
        tasks += await asked(turns, other)
        assert other.begun.is_set()
        assert await end([*mine, other], tasks) == ["mallory"] * 3 + ["alice"]
        anonymous = [Held() for _ in range(PROCESSES + 1)]
        tasks = await asked(turns, *anonymous)
        assert begun(anonymous) == [True] * PROCESSES + [False]
        await end(anonymous, tasks)

    asyncio.run(run())


def test_tenants_take_turns(turns):
    async def run():
        running = [Held("mallory"), Held("bob")]
        waiting = [Held("mallory"), Held("mallory"), Held("alice")]
        tasks = await asked(turns, *running, *waiting)
        assert begun(waiting) == [False] * 3
        running[0].released.set()
        await tasks[0]
        await asyncio.sleep(0.05)
        assert begun(waiting) in ([True, False, False], [False, False, True])
        running[1].released.set()
        await asyncio.sleep(0.05)
        assert begun(waiting) == [True, False, True], "one of each"
        await end(waiting, tasks)

    asyncio.run(run())


def test_a_caller_that_goes_away_keeps_its_turn_until_its_work_ends(turns):
    async def run():
        gone = [Held("mallory") for _ in range(3)]
        tasks = await asked(turns, *gone)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await tasks[0]
        later = [Held("mallory"), Held("alice")]
        tasks = await asked(turns, *later)
        assert begun(gone) == [True, False, False]
        assert begun(later) == [False, True]
        gone[0].released.set()
        assert await end(later, tasks) == ["mallory", "alice"]
        assert begun(gone) == [True, False, False], "those that only waited are forgotten"

    asyncio.run(run())


def test_a_turn_that_comes_with_the_callers_leaving_is_passed_on(turns):
    async def run():
        first, gone, next_one = Held("mallory"), Held("mallory"), Held("mallory")
        one, other, last = await asked(turns, first, gone, next_one)
        turns._end("mallory")  # the turn is given, and before its task runs, its caller goes
        turns._running["mallory"] += 1
        other.cancel()
        first.released.set()
        await one
        next_one.released.set()
        assert await asyncio.wait_for(last, PATIENCE) == "mallory"
        assert not gone.begun.is_set()

    asyncio.run(run())


def test_who_waits_long_or_with_too_many_is_refused_and_holds_nobody_up(turns, monkeypatch):
    async def run():
        monkeypatch.setattr(rendering_turns, "WAIT_SECONDS", 0.05)
        running = [Held("mallory"), Held("bob")]
        tasks = await asked(turns, *running)
        late = Held("alice")
        (waiting,) = await asked(turns, late)
        with pytest.raises(ResourceExhaustedError, match="other conversations are being rendered") as caught:
            await waiting
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
        monkeypatch.setattr(rendering_turns, "WAIT_SECONDS", PATIENCE)
        monkeypatch.setattr(rendering_turns, "WAITING", 4)
        turns._share = 2
        waiting = [Held("mallory"), Held("mallory")]
        tasks += await asked(turns, *waiting)
        for tenant, reason in (
            ("mallory", "TENANT_QUEUE_FULL"),
            ("alice", None),
            ("carol", None),
            ("dave", "QUEUE_FULL"),
        ):
            work = Held(tenant)
            (task,) = await asked(turns, work)
            if reason is None:
                waiting.append(work)
                tasks.append(task)
                continue
            with pytest.raises(ResourceExhaustedError) as caught:
                await task
            assert caught.value.reason == reason
        found = await end([*running, *waiting], tasks)
        assert sorted(found) == ["alice", "bob", "carol", "mallory", "mallory", "mallory"]
        assert not turns._waiting
        assert not late.begun.is_set()

    asyncio.run(run())
