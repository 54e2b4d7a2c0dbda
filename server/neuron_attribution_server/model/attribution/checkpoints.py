"""Where long work looks up: between its chunks it may be stopped, or let something short go first.

The formulas call `checkpoint` between chunks that take a fraction of a second each, and do not know who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")


def _go_on() -> None:
    """Nobody listens."""


_LISTENER: ContextVar[Callable[[], None]] = ContextVar("checkpoint", default=_go_on)


def checkpoint() -> None:
    """Look up. What is raised here ends the work."""
    _LISTENER.get()()


def checked(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, with a checkpoint before each."""
    for item in items:
        checkpoint()
        yield item


@contextmanager
def at_checkpoints(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` at every checkpoint inside, on the thread that works."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
