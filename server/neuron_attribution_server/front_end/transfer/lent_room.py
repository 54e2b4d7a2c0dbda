"""Room that is held for callers who may need it never: where others wait, it is taken back."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

LEAST_LENDING_SECONDS = 10.0
"""How long lent room may be kept where others wait for it."""

Holding = TypeVar("Holding")


class LentRoom(Generic[Holding]):
    """What is lent, longest first. `again` is called when something that was wanted has been lent for long enough."""

    def __init__(self, again: Callable[[], None]) -> None:
        self._again = again
        self._lent: OrderedDict[Holding, tuple[float, Callable[[], None]]] = OrderedDict()
        self._reminder: asyncio.TimerHandle | None = None
        self._is_taking = False

    def lend(self, holding: Holding, take_back: Callable[[], None]) -> None:
        """Let `take_back` be called, once, where others wait for it and it has been lent for long enough."""
        self._lent[holding] = (asyncio.get_running_loop().time(), take_back)

    def keep(self, holding: Holding) -> None:
        """Lend it no more."""
        self._lent.pop(holding, None)

    def take_back(self, would_help: Callable[[Holding], bool]) -> None:
        """Take back what was lent first of all that would help those who wait, or wait for it for long enough."""
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None
        holding = None if self._is_taking else next(filter(would_help, self._lent), None)
        if holding is None:
            return
        since, take_back = self._lent[holding]
        loop = asyncio.get_running_loop()
        if loop.time() < since + LEAST_LENDING_SECONDS:
            self._reminder = loop.call_at(since + LEAST_LENDING_SECONDS, self._again)
        else:
            self.keep(holding)
            self._is_taking = True
            loop.call_soon(self._taken, take_back)

    def _taken(self, take_back: Callable[[], None]) -> None:
        self._is_taking = False
        take_back()
        self._again()
