"""Prompts explained by a running service, over one stream that is opened again when it breaks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain

from neuron_attribution.analysis.corpus import CorpusItem
from neuron_attribution.analysis.rows import ItemRows, failed_rows, result_rows, unreadable
from neuron_attribution.clients.client import Client
from neuron_attribution.errors import AbortedError, UnavailableError
from neuron_attribution.requests import AttributeRequest
from neuron_attribution.results import ModelInfo
from neuron_attribution.transport.streams import StreamResult

SPAN = 512
"""How far the stream may run ahead of the oldest unanswered prompt: what waits for it is kept in memory."""
ATTEMPTS = 5
"""Streams in a row that may break without an answer before the study gives up."""
_PAUSE = 2.0


class ServiceBackend:
    """Explains prompts through a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def describe(self) -> ModelInfo:
        """What is served."""
        return self._client.get_model()

    def explain(self, items: Iterator[CorpusItem]) -> Iterator[ItemRows]:
        """The rows of each prompt, as answers come. Raises UnavailableError where the service stays away."""
        feed = Feed(items, SPAN)
        broken = 0
        while True:
            try:
                for outcome in self._client.attribute_stream(feed.requests(), reproducible=True):
                    broken = 0
                    yield from map(unreadable, feed.problems())
                    yield _rows(feed.answered(int(outcome.key)), outcome)
                yield from map(unreadable, feed.problems())
                return
            except (UnavailableError, AbortedError):
                broken += 1
                if broken == ATTEMPTS:
                    raise
                time.sleep(_PAUSE)


class Feed:
    """The prompts of one stream after another. What a broken stream left unanswered goes first into the next one.

    gRPC reads a stream's requests in a thread of its own, and may go on to do so for a moment after it broke.
    """

    def __init__(self, items: Iterator[CorpusItem], span: int) -> None:
        self._items = items
        self._span = span
        self._unanswered: dict[int, CorpusItem] = {}
        self._problems: deque[CorpusItem] = deque()
        self._stream = 0
        self._changed = threading.Condition()

    def requests(self) -> Iterator[tuple[str, AttributeRequest]]:
        """The requests of the next stream; those before it end."""
        with self._changed:
            self._stream += 1
            self._changed.notify_all()
            again = list(self._unanswered.values())
        return self._requests(self._stream, again)

    def answered(self, index: int) -> CorpusItem:
        """The prompt an answer is for."""
        with self._changed:
            self._changed.notify_all()
            return self._unanswered.pop(index)

    def problems(self) -> Iterator[CorpusItem]:
        """Take the prompts that there is no request for."""
        while self._problems:
            yield self._problems.popleft()

    def _requests(self, stream: int, again: list[CorpusItem]) -> Iterator[tuple[str, AttributeRequest]]:
        for item in chain(again, iter(partial(self._next, stream), None)):
            if item is not None and item.request is not None:
                yield str(item.index), item.request

    def _next(self, stream: int) -> CorpusItem | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._stream != stream or self._has_room())
                item = None if self._stream != stream else next(self._items, None)
                if item is None or item.request is not None:
                    break
                self._problems.append(item)
            if item is not None:
                self._unanswered[item.index] = item
            return item

    def _has_room(self) -> bool:
        """The unanswered are in the order of the corpus."""
        oldest, youngest = next(iter(self._unanswered), 0), next(reversed(self._unanswered), 0)
        return youngest - oldest < self._span


def _rows(item: CorpusItem, outcome: StreamResult) -> ItemRows:
    if outcome.error is not None:
        return failed_rows(item, outcome.error)
    assert outcome.result is not None
    return result_rows(item, outcome.result)
