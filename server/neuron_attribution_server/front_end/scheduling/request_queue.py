"""The waiting tasks: who may join, who leaves, and which of them make the next batch.

1. Between tenants: the one that was given the fewest seconds of work goes next, so each gets its share of every batch
   and a flood delays only its own tenant. What runs counts as predicted until it is known what it took. A tenant that
   joins is owed nothing: it starts level with who was served last, by what that one has really had.
2. Within a tenant: its oldest task leads the batch; tasks of similar length join it, so that little is padded, and
   short ones share no batch with long ones, nor projections of neurons with what goes through the model.
3. A task older than the maximum age is taken before any younger one of its tenant, whatever the padding.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.front_end.calls.calls import Call
from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS
from neuron_attribution_server.front_end.scheduling.batches import BatchLimits, is_dense
from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.running import do_nothing
from neuron_attribution_server.tasks.tasks import ProjectTask, Task

TOKEN_PRICE = 1e-6


@dataclass(frozen=True, slots=True)
class Delivery:
    """A task's outcome, the seconds it waited for its batch, and those that it was predicted to take."""

    outcome: Answer
    queue: float
    predicted: float = 0.0


@dataclass(slots=True, eq=False)
class QueuedTask:
    """A task that waits. Times are those of the event loop's clock; `deadline` None means it may wait for ever."""

    task: Task
    tenant: str
    enqueued: float
    deadline: float | None
    delivery: asyncio.Future[Delivery]
    call: Call | None = None
    computed: Callable[[], None] = do_nothing
    """Called when its answer is computed and about to be written."""
    seconds: float = 0.0
    """What it is predicted to take alone."""
    is_short: bool = True
    """Whether it may go before a longer one that runs. Short tasks share batches among themselves."""
    charged: float | None = None
    """What its tenant was charged for it, once it has run."""
    left: Callable[[], None] = do_nothing
    """Called when nobody waits for it any more while it runs."""

    def may_share(self, leader: QueuedTask) -> bool:
        """Whether it may be in a leader's batch: what is answered soon, or needs no pass, waits for nothing else."""
        return self.is_short == leader.is_short and _needs_pass(self.task) == _needs_pass(leader.task)

    def is_wanted(self, now: float) -> bool:
        """Whether somebody still waits for it."""
        return not self.delivery.done() and (self.deadline is None or now < self.deadline)

    def deliver(self, outcome: Answer, started: float) -> None:
        """Hand the outcome to whoever waits, if anybody still does."""
        if not self.delivery.done():
            self.delivery.set_result(Delivery(outcome, started - self.enqueued, self.seconds))


@dataclass(slots=True)
class _Line:
    """One tenant's waiting tasks, oldest first."""

    items: dict[QueuedTask, None] = field(default_factory=dict)  # a set that keeps its order
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """How much waits."""

    requests: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How many requests, tokens and seconds of work may wait, and the part of each that one tenant may fill.

    A tenant may always have one request waiting. Anonymous callers cannot be told apart and share the whole queue.
    """

    requests: int
    tokens: int
    seconds: float
    tenant_share: float

    def are_passed(self, waiting: _Waiting, more: _Waiting, share: float = 1.0) -> bool:
        """Whether what waits and one request more are over the limits, or over a share of them."""
        return (
            waiting.requests + more.requests > share * self.requests
            or waiting.tokens + more.tokens > share * self.tokens
            or waiting.seconds + more.seconds > share * self.seconds
        )


class RequestQueue:
    """Waiting tasks, and batches of them. Times are in seconds on one clock."""

    def __init__(
        self,
        limits: QueueLimits,
        batch: BatchLimits,
        maximum_age: float,
        short_batch: Callable[[], BatchLimits] | None = None,
    ) -> None:
        """`short_batch` says at any time how much a batch of short tasks may be; without it, as much as others."""
        self._limits = limits
        self._batch = batch
        self._short_batch = short_batch or (lambda: batch)
        self._maximum_age = maximum_age
        self._lines: dict[str, _Line] = {}
        self._had: dict[str, float] = {}  # the seconds each tenant was given since nothing waited or ran
        self._promised: dict[str, float] = {}  # those of what runs
        self._running = 0
        self._floor = 0.0  # what the tenant that was served last had had by then
        self._requests = 0
        self._tokens = 0
        self._seconds = 0.0

    def __len__(self) -> int:
        return self._requests

    @property
    def tokens(self) -> int:
        """The tokens of the waiting tasks."""
        return self._tokens

    @property
    def seconds(self) -> float:
        """What the waiting tasks are predicted to take, one by one."""
        return self._seconds

    @property
    def batches(self) -> int:
        """About how many batches the waiting tasks make."""
        by_requests, by_tokens = self._requests / self._batch.requests, self._tokens / self._batch.tokens
        return max(1, round(max(by_requests, by_tokens)))

    def check_room(self, tenant: str, tokens: int, seconds: float, retry_after: float) -> None:
        """Raise ResourceExhaustedError where a tenant's task of so many tokens and seconds cannot join.

        A tenant may always have one waiting, however long it takes, unless the whole queue is full.
        """
        line, more = self._lines.get(tenant), _Waiting(1, tokens, seconds)
        every = _Waiting(self._requests, self._tokens, self.seconds)
        mine = _Waiting(0, 0, 0.0) if line is None else _Waiting(len(line.items), line.tokens, line.seconds)
        if self._requests and self._limits.are_passed(every, more):
            whose, reason, waiting = "", "QUEUE_FULL", every
        elif (
            line is not None and tenant != ANONYMOUS and self._limits.are_passed(mine, more, self._limits.tenant_share)
        ):
            whose, reason, waiting = "of yours ", "TENANT_QUEUE_FULL", mine
        else:
            return
        raise ResourceExhaustedError(
            f"{waiting.requests} requests {whose}with {waiting.tokens} tokens are waiting, {tokens} more tokens have "
            f"no room ({waiting.seconds:.1f} and {seconds:.1f} seconds of a worker's time); "
            f"try again in {retry_after:.1f} seconds",
            reason=reason,
            retry_after=retry_after,
        )

    def add(self, item: QueuedTask) -> None:
        """Put a task at the end of its tenant's line; check_room comes first."""
        if item.tenant not in self._lines:
            self._had[item.tenant] = max(self._had.get(item.tenant, 0.0), self._floor)
            self._promised.setdefault(item.tenant, 0.0)
            self._lines[item.tenant] = _Line()
        line = self._lines[item.tenant]
        line.items[item] = None
        line.tokens += item.task.tokens
        line.seconds += item.seconds
        self._requests += 1
        self._tokens += item.task.tokens
        self._seconds += item.seconds

    def discard(self, item: QueuedTask) -> None:
        """Take a task out, if it still waits."""
        line = self._lines.get(item.tenant)
        if line is None or item not in line.items:
            return
        del line.items[item]
        line.tokens -= item.task.tokens
        line.seconds -= item.seconds
        self._requests -= 1
        self._tokens -= item.task.tokens
        self._seconds -= item.seconds
        if not line.items:
            del self._lines[item.tenant]
        if not self._lines:
            self._seconds = 0.0  # nothing waits, whatever rounding has left
            self._forget()

    def has_full_batch(self, now: float) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        batch = self._next_batch(now)
        return len(batch) == self._batch.requests or len(batch) < len(self)

    def pop_batch(self, now: float) -> list[QueuedTask]:
        """Take the next batch out. Tasks whose time ran out are dropped; there may be nothing left."""
        self._drop_unwanted(now)
        return self._taken(self._next_batch(now))

    def pop_shorter(self, now: float, limits: BatchLimits, *, short: bool = True) -> list[QueuedTask]:
        """Take out the next batch of tasks that are `short`, or are not, in the same order between tenants.

        None takes longer than the batch may.
        """
        self._drop_unwanted(now)
        return self._taken(self._next_batch(now, limits, short=short))

    def charge(self, batch: Sequence[QueuedTask], seconds: float) -> None:
        """Charge its tenants with what a batch took, in place of what they were charged with for it before."""
        predicted = math.fsum(map(_price, batch))
        for item in batch:
            share = _price(item) * seconds / predicted
            if item.charged is None:
                self._running -= 1
                if item.tenant in self._promised:
                    self._promised[item.tenant] -= _price(item)
            if item.tenant in self._had:
                self._had[item.tenant] += share - (item.charged or 0.0)
            item.charged = share
        self._forget()

    def _forget(self) -> None:
        """Where nothing waits or runs, nobody is ahead of another."""
        if self._running or self._lines:
            return
        self._had.clear()
        self._promised.clear()
        self._floor = 0.0

    def _drop_unwanted(self, now: float) -> None:
        for item in [item for line in self._lines.values() for item in line.items if not item.is_wanted(now)]:
            self.discard(item)

    def _taken(self, batch: list[QueuedTask]) -> list[QueuedTask]:
        self._running += len(batch)
        if batch:
            self._floor = max(self._floor, min(self._had[item.tenant] for item in batch))
        for item in batch:
            self._promised[item.tenant] += _price(item)
            self.discard(item)
        return batch

    def _next_batch(
        self, now: float, limits: BatchLimits | None = None, *, short: bool | None = None
    ) -> list[QueuedTask]:
        """The oldest task of the tenant whose turn it is, and what fits beside it, tenants taking turns.

        With `limits` only tasks that fit into them, and are `short` or are not.
        """
        lines = {
            tenant: [each for each in line.items if limits is None or (each.is_short == short and _fits(each, limits))]
            for tenant, line in self._lines.items()
        }
        lines = {tenant: items for tenant, items in lines.items() if items}
        if not lines:
            return []
        served = {tenant: self._had[tenant] + self._promised[tenant] for tenant in lines}
        leader = lines[min(lines, key=served.__getitem__)][0]
        limits = limits or (self._short_batch() if leader.is_short else self._batch)
        served[leader.tenant] += _price(leader)
        batch = [leader]
        turns = {tenant: self._fitting(items, batch, limits, now) for tenant, items in lines.items()}
        while turns and len(batch) < limits.requests:
            tenant = min(turns, key=served.__getitem__)
            item = next(turns[tenant], None)
            if item is None:
                del turns[tenant]
            else:
                batch.append(item)
                served[tenant] += _price(item)
        return batch

    def _fitting(
        self, line: list[QueuedTask], batch: list[QueuedTask], limits: BatchLimits, now: float
    ) -> Iterator[QueuedTask]:
        """A tenant's tasks that fit into the growing batch: the too old by age, then the others by length.

        What is too old and does not fit ends the turn: were younger tasks taken, the tenant might never lead a batch.
        """
        leader = batch[0]
        items = [item for item in line if item is not leader and item.may_share(leader)]
        old = [item for item in items if now - item.enqueued >= self._maximum_age]
        for item in old:
            if not _allows(limits, [*batch, item]):
                return
            yield item
        length = leader.task.length
        for item in sorted(items[len(old) :], key=lambda item: abs(item.task.length - length)):
            if is_dense([each.task for each in (*batch, item)]) and _allows(limits, [*batch, item]):
                yield item


def _fits(item: QueuedTask, limits: BatchLimits) -> bool:
    """Whether a task may run alone within limits."""
    return _allows(limits, [item])


def _allows(limits: BatchLimits, items: Sequence[QueuedTask]) -> bool:
    return limits.allow([item.task for item in items], math.fsum(item.seconds for item in items))


def _needs_pass(task: Task) -> bool:
    """Whether it goes through the model."""
    return not isinstance(task, ProjectTask)


def _price(item: QueuedTask) -> float:
    """What a tenant's account is charged: seconds, and a trifle for each token, which alone count without prices."""
    return item.seconds + TOKEN_PRICE * item.task.tokens
