"""What may run as one batch: one right-padded forward pass within the token budget and the predicted memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import Task

PADDED_PER_TOKEN = 2
"""Padded tokens per token of the tasks, at most: two tasks always share a batch, however their lengths differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The bounds of one batch; a task alone always runs."""

    requests: int
    tokens: int
    memory: MemoryCost
    seconds: float = math.inf
    together: Callable[[Sequence[Task]], float] | None = None
    """Predicts the seconds that count, never more than one by one; without it those that the tasks take so."""

    def allow(self, tasks: Sequence[Task], seconds: float = 0.0) -> bool:
        """Whether the tasks may run together, which take so many seconds one by one."""
        return (
            len(tasks) <= self.requests
            and padded_tokens(tasks) <= self.tokens
            and (seconds <= self.seconds or self._allows_together(tasks))
            and self.memory.batch(tasks) <= self.memory.available
        )

    def _allows_together(self, tasks: Sequence[Task]) -> bool:
        """Whether what takes too long one by one does not together. To predict that takes a while, so it comes last."""
        return self.together is not None and len(tasks) > 1 and self.together(tasks) <= self.seconds


def padded_tokens(tasks: Sequence[Task]) -> int:
    """The tokens of a batch, each sequence padded to the longest."""
    return sum(task.sequences for task in tasks) * max(task.length for task in tasks)


def is_dense(tasks: Sequence[Task]) -> bool:
    """Whether the tasks are alike enough in length that padding does not outweigh them."""
    return padded_tokens(tasks) <= PADDED_PER_TOKEN * sum(task.tokens for task in tasks)
