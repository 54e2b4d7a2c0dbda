"""The waiting tasks: who may join, who leaves, and which of them make the next batch.

1. Between tenants: the one that was given the fewest tokens goes next, so each gets its share of every batch and
   a flood delays only its own tenant. A tenant that joins starts level with the least served of those that wait.
2. Within a tenant: its oldest task leads the batch; tasks of similar length join it, so that little is padded.
3. A task older than the maximum age is taken before any younger one of its tenant, whatever the padding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.batches import BatchLimits, is_dense
from neuron_attribution_server.calls import Call
from neuron_attribution_server.tasks import Answer, Task
from neuron_attribution_server.tenants import ANONYMOUS
from neuron_attribution_server.worker import unheard


@dataclass(frozen=True, slots=True)
class Delivery:
    """A task's outcome and the seconds it waited for its batch."""

    outcome: Answer
    queue: float


@dataclass(slots=True, eq=False)
class QueuedTask:
    """A task that waits. Times are those of the event loop's clock; `deadline` None means it may wait for ever."""

    task: Task
    tenant: str
    enqueued: float
    deadline: float | None
    delivery: asyncio.Future[Delivery]
    call: Call | None = None
    computed: Callable[[], None] = unheard
    """Called when its answer is computed and about to be written."""

    def is_wanted(self, now: float) -> bool:
        """Whether somebody still waits for it."""
        return not self.delivery.done() and (self.deadline is None or now < self.deadline)

    def deliver(self, outcome: Answer, started: float) -> None:
        """Hand the outcome to whoever waits, if anybody still does."""
        if not self.delivery.done():
            self.delivery.set_result(Delivery(outcome, started - self.enqueued))


@dataclass(slots=True)
class _Line:
    """One tenant's waiting tasks, oldest first."""

    items: dict[QueuedTask, None] = field(default_factory=dict)  # a set that keeps its order
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How many requests and tokens may wait, and the part of either that one tenant may fill.

    A tenant may always have one request waiting. Anonymous callers cannot be told apart and share the whole queue.
    """

    requests: int
    tokens: int
    tenant_share: float


class RequestQueue:
    """Waiting tasks, and batches of them. Times are in seconds on one clock."""

    def __init__(self, limits: QueueLimits, batch: BatchLimits, maximum_age: float) -> None:
        self._limits = limits
        self._batch = batch
        self._maximum_age = maximum_age
        self._lines: dict[str, _Line] = {}
        self._served: dict[str, int] = {}  # tokens given to each tenant, since the queue was last empty
        self._requests = 0
        self._tokens = 0

    def __len__(self) -> int:
        return self._requests

    @property
    def tokens(self) -> int:
        """The tokens of the waiting tasks."""
        return self._tokens

    @property
    def batches(self) -> int:
        """About how many batches the waiting tasks make."""
        by_requests, by_tokens = self._requests / self._batch.requests, self._tokens / self._batch.tokens
        return max(1, round(max(by_requests, by_tokens)))

    def check_room(self, tenant: str, tokens: int, retry_after: float) -> None:
        """Raise ResourceExhaustedError where a tenant's task of that many tokens cannot join."""
        line, share = self._lines.get(tenant), self._limits.tenant_share
        if _is_full(self._requests, self._tokens, tokens, self._limits.requests, self._limits.tokens):
            whose, reason, waiting, waiting_tokens = "", "QUEUE_FULL", self._requests, self._tokens
        elif (
            line is not None
            and tenant != ANONYMOUS
            and _is_full(
                len(line.items), line.tokens, tokens, share * self._limits.requests, share * self._limits.tokens
            )
        ):
            whose, reason, waiting, waiting_tokens = "of yours ", "TENANT_QUEUE_FULL", len(line.items), line.tokens
        else:
            return
        raise ResourceExhaustedError(
            f"{waiting} requests {whose}with {waiting_tokens} tokens are waiting, {tokens} more tokens have no room; "
            f"try again in {retry_after:.1f} seconds",
            reason=reason,
            retry_after=retry_after,
        )

    def add(self, item: QueuedTask) -> None:
        """Put a task at the end of its tenant's line; check_room comes first."""
        if item.tenant not in self._lines:
            least = min((self._served[tenant] for tenant in self._lines), default=0)
            self._served[item.tenant] = max(self._served.get(item.tenant, 0), least)
            self._lines[item.tenant] = _Line()
        line = self._lines[item.tenant]
        line.items[item] = None
        line.tokens += item.task.tokens
        self._requests += 1
        self._tokens += item.task.tokens

    def discard(self, item: QueuedTask) -> None:
        """Take a task out, if it still waits."""
        line = self._lines.get(item.tenant)
        if line is None or item not in line.items:
            return
        del line.items[item]
        line.tokens -= item.task.tokens
        self._requests -= 1
        self._tokens -= item.task.tokens
        if not line.items:
            del self._lines[item.tenant]
        if not self._lines:
            self._served.clear()

    def has_full_batch(self, now: float) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        batch = self._next_batch(now)
        return len(batch) == self._batch.requests or len(batch) < len(self)

    def pop_batch(self, now: float) -> list[QueuedTask]:
        """Take the next batch out. Tasks whose time ran out are dropped; there may be nothing left."""
        for item in [item for line in self._lines.values() for item in line.items if not item.is_wanted(now)]:
            self.discard(item)
        batch = self._next_batch(now)
        for item in batch:
            self._served[item.tenant] += item.task.tokens
        for item in batch:
            self.discard(item)
        return batch

    def _next_batch(self, now: float) -> list[QueuedTask]:
        """The oldest task of the tenant whose turn it is, and what fits beside it, tenants taking turns."""
        if not self._lines:
            return []
        served = dict(self._served)
        leader = next(iter(self._lines[min(self._lines, key=served.__getitem__)].items))
        served[leader.tenant] += leader.task.tokens
        batch = [leader]
        turns = {tenant: self._fitting(tenant, batch, now) for tenant in self._lines}
        while turns and len(batch) < self._batch.requests:
            tenant = min(turns, key=served.__getitem__)
            item = next(turns[tenant], None)
            if item is None:
                del turns[tenant]
            else:
                batch.append(item)
                served[tenant] += item.task.tokens
        return batch

    def _fitting(self, tenant: str, batch: list[QueuedTask], now: float) -> Iterator[QueuedTask]:
        """A tenant's tasks that fit into the growing batch: the too old by age, then the others by length.

        What is too old and does not fit ends the turn: were younger tasks taken, the tenant might never lead a batch.
        """
        leader = batch[0]
        items = [item for item in self._lines[tenant].items if item is not leader]
        old = [item for item in items if now - item.enqueued >= self._maximum_age]
        for item in old:
            if not self._batch.allow([*(each.task for each in batch), item.task]):
                return
            yield item
        length = leader.task.length
        for item in sorted(items[len(old) :], key=lambda item: abs(item.task.length - length)):
            tasks = [*(each.task for each in batch), item.task]
            if is_dense(tasks) and self._batch.allow(tasks):
                yield item


def _is_full(requests: int, tokens: int, more_tokens: int, most_requests: float, most_tokens: float) -> bool:
    return requests + 1 > most_requests or tokens + more_tokens > most_tokens
