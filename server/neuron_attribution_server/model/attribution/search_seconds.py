"""How long the searches for value neurons and the exact scores take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class SearchSeconds:
    """Seconds spent bounding value neurons, and scoring neurons, heads and positions exactly, by the host's clock.

    Nothing waits for a GPU: what is queued there counts where the host waits for its result.
    """

    def __init__(self) -> None:
        self.bound = 0.0
        self.exact = 0.0

    @contextmanager
    def bounding(self) -> Iterator[None]:
        """Count what happens inside as bounding, but for the exact scoring in it."""
        started, exact = time.perf_counter(), self.exact
        yield
        self.bound += time.perf_counter() - started - (self.exact - exact)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Count what happens inside as exact scoring."""
        started = time.perf_counter()
        yield
        self.exact += time.perf_counter() - started
