"""Answers that were given before, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from neuron_attribution.results import ModelIdentity

from neuron_attribution_server.front_end.service.task_sizes import task_bytes
from neuron_attribution_server.tasks.answers import PackedAttribution, PackedTrace
from neuron_attribution_server.tasks.tasks import AttributeTask, TraceTask

KeptTask = AttributeTask | TraceTask
Kept = PackedAttribution | PackedTrace

_ENTRY_BYTES = 2048
"""About what an entry takes beside its response and token ids."""
_TOKEN_BYTES = 40
"""About what a token id takes in the answer."""


class ResultCache:
    """Attributions and graphs by model and task, up to `capacity` bytes. Use it from the event loop only.

    A task holds all that an answer depends on and nothing else: exact token ids, explained tokens, contrast, options.
    Generation repeats as well: it is greedy, or has a seed.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[tuple[ModelIdentity, KeptTask], Kept] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, model: ModelIdentity, task: KeptTask) -> Kept | None:
        """The answer this model gave to the same task, if it is still there."""
        answer = self._answers.get((model, task))
        if answer is None:
            self.misses += 1
            return None
        self.hits += 1
        self._answers.move_to_end((model, task))
        return answer

    def size(self, model: ModelIdentity, task: KeptTask) -> int | None:
        """Bytes of the answer that `get` would give, if there is one."""
        answer = self._answers.get((model, task))
        return None if answer is None else len(answer.response)

    def put(self, model: ModelIdentity, task: KeptTask, answer: Kept) -> None:
        """Keep an answer. One that is larger than the cache is not kept."""
        key, size = (model, task), _size(task, answer)
        if key in self._answers or size > self._capacity:
            return
        self._answers[key] = answer
        self.bytes += size
        while self.bytes > self._capacity:
            (_, oldest), dropped = self._answers.popitem(last=False)
            self.bytes -= _size(oldest, dropped)


def _size(task: KeptTask, answer: Kept) -> int:
    return task_bytes(task) + len(answer.response) + _TOKEN_BYTES * len(answer.token_ids) + _ENTRY_BYTES
