"""Answers that were given before, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from neuron_attribution.results import ModelIdentity

from neuron_attribution_server.tasks import AttributeTask, PackedAttribution

_ENTRY_BYTES = 2048
"""About what an entry takes beside its response and token ids."""
_TOKEN_BYTES = 80
"""About what a token id takes in the task and in the answer."""


class ResultCache:
    """Attributions by model and task, up to `capacity` bytes. Use it from the event loop only.

    A task holds all that an answer depends on and nothing else: exact token ids, explained tokens, contrast, options.
    Generation is greedy, so its answers repeat as well.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[tuple[ModelIdentity, AttributeTask], PackedAttribution] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, model: ModelIdentity, task: AttributeTask) -> PackedAttribution | None:
        """The answer this model gave to the same task, if it is still there."""
        answer = self._answers.get((model, task))
        if answer is None:
            self.misses += 1
            return None
        self.hits += 1
        self._answers.move_to_end((model, task))
        return answer

    def put(self, model: ModelIdentity, task: AttributeTask, answer: PackedAttribution) -> None:
        """Keep an answer. One that is larger than the cache is not kept."""
        key = (model, task)
        if key in self._answers or _size(answer) > self._capacity:
            return
        self._answers[key] = answer
        self.bytes += _size(answer)
        while self.bytes > self._capacity:
            _, dropped = self._answers.popitem(last=False)
            self.bytes -= _size(dropped)


def _size(answer: PackedAttribution) -> int:
    return len(answer.response) + _TOKEN_BYTES * len(answer.token_ids) + _ENTRY_BYTES
