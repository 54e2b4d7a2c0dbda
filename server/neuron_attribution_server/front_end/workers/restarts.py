"""When a dead worker is started again, and when that has no use any more."""

from __future__ import annotations

from collections import deque

FIRST_BACKOFF = 0.5
MOST_BACKOFF = 30.0
"""Seconds before a second restart in a row, doubled for each death that no finished batch came between; before the
first there is no pause."""


class Restarts:
    """The deaths of one worker. Times are in seconds, on one clock."""

    def __init__(self, allowed: int, window: float) -> None:
        """Up to `allowed` restarts within any `window` seconds."""
        self.allowed = allowed
        self.window = window
        self._deaths: deque[float] = deque()
        self._in_a_row = 0
        self.total = 0
        """How many restarts there have been."""

    @property
    def recent(self) -> int:
        """How many deaths the window holds."""
        return len(self._deaths)

    def worked(self) -> None:
        """Note that the worker has finished a batch."""
        self._in_a_row = 0

    def died(self, now: float) -> float | None:
        """Note a death; return the seconds to wait before the restart, None where there have been too many."""
        self._deaths.append(now)
        while self._deaths[0] <= now - self.window:
            self._deaths.popleft()
        self._in_a_row += 1
        if self.recent > self.allowed:
            return None
        self.total += 1
        return float(min(FIRST_BACKOFF * 2 ** min(self._in_a_row - 2, 16), MOST_BACKOFF)) if self._in_a_row > 1 else 0.0
