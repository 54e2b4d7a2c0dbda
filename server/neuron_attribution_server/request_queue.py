"""The waiting tasks, in order of arrival: who may join, who leaves, and which of them make the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_attribution.errors import ResourceExhaustedError

from neuron_attribution_server.tasks import Answer, MemoryCost, Task


@dataclass(frozen=True, slots=True)
class Delivery:
    """A task's outcome and the seconds it waited for its batch."""

    outcome: Answer
    queue: float


@dataclass(slots=True, eq=False)
class QueuedTask:
    """A task that waits. Times are those of the event loop's clock; `deadline` None means it may wait for ever."""

    task: Task
    enqueued: float
    deadline: float | None
    delivery: asyncio.Future[Delivery]

    def is_wanted(self, now: float) -> bool:
        """Whether somebody still waits for it."""
        return not self.delivery.done() and (self.deadline is None or now < self.deadline)

    def deliver(self, outcome: Answer, started: float) -> None:
        """Hand the outcome to whoever waits, if anybody still does."""
        if not self.delivery.done():
            self.delivery.set_result(Delivery(outcome, started - self.enqueued))


class RequestQueue:
    """Waiting tasks, bounded by their number and their tokens; batches of them, by tokens and predicted memory."""

    def __init__(
        self, *, requests: int, tokens: int, batch_requests: int, batch_tokens: int, memory: MemoryCost
    ) -> None:
        self._requests = requests
        self._tokens = tokens
        self._batch_requests = batch_requests
        self._batch_tokens = batch_tokens
        self._memory = memory
        self._waiting: dict[QueuedTask, None] = {}  # a set that keeps its order
        self._waiting_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self, tokens: int, retry_after: float) -> None:
        """Raise ResourceExhaustedError where a task of that many tokens cannot join."""
        if len(self) >= self._requests:
            what = f"{len(self)} requests"
        elif self._waiting_tokens + tokens > self._tokens:
            what = f"{self._waiting_tokens} tokens"
        else:
            return
        raise ResourceExhaustedError(
            f"{what} are waiting, and {tokens} more tokens have no room; try again in {retry_after:.1f} seconds",
            retry_after=retry_after,
        )

    def add(self, item: QueuedTask) -> None:
        """Put a task at the end; check_room comes first."""
        self._waiting[item] = None
        self._waiting_tokens += item.task.tokens

    def discard(self, item: QueuedTask) -> None:
        """Take a task out, if it still waits."""
        if item in self._waiting:
            del self._waiting[item]
            self._waiting_tokens -= item.task.tokens

    @property
    def has_full_batch(self) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        batch = self._next_batch()
        return len(batch) == self._batch_requests or len(batch) < len(self)

    def pop_batch(self, now: float) -> list[QueuedTask]:
        """Take the next batch out. Tasks whose time ran out are dropped; there may be nothing left."""
        for item in [item for item in self._waiting if not item.is_wanted(now)]:
            self.discard(item)
        batch = self._next_batch()
        for item in batch:
            self.discard(item)
        return batch

    def _next_batch(self) -> list[QueuedTask]:
        """The longest run of first tasks whose padded size and memory are within the budget, and at least one."""
        batch: list[QueuedTask] = []
        for item in self._waiting:
            if batch and (len(batch) == self._batch_requests or not self._fits([*batch, item])):
                break
            batch.append(item)
        return batch

    def _fits(self, batch: Sequence[QueuedTask]) -> bool:
        tasks = [item.task for item in batch]
        padded = len(tasks) * max(task.tokens for task in tasks)
        return padded <= self._batch_tokens and self._memory.batch(tasks) <= self._memory.available
