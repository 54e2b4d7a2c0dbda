"""A value read from files, and read again when they change."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from neuron_attribution_server.config import ConfigurationError

Value = TypeVar("Value")
_Stamp = tuple[tuple[int, int, int] | None, ...]

_log = logging.getLogger(__name__)


class Reloaded(Generic[Value]):
    """What `read` makes of some files. A change that cannot be read is logged, and the old value stays.

    `read` raises ConfigurationError; so does the constructor. `interval` is the least time between two looks at the
    files, in seconds. Threads may share it.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], Value], interval: float = 0.0) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._interval = interval
        self._looked = time.monotonic()
        self._stamp = self._stamp_now()
        self.value = read()

    def refresh(self) -> bool:
        """Read the files again if they have changed; return whether there is a new value."""
        now = time.monotonic()
        if now - self._looked < self._interval:
            return False
        self._looked = now
        stamp = self._stamp_now()
        return stamp != self._stamp and self._reload(stamp)

    def _reload(self, stamp: _Stamp) -> bool:
        try:
            value = self._read()
        except ConfigurationError as error:
            _log.error("%s; what was read before stays in use", error)
            self._stamp = stamp
            return False
        if self._stamp_now() != stamp:
            return False  # half of it may be older than the rest; the next look reads it again
        self._stamp, self.value = stamp, value
        _log.info("read again: %s", ", ".join(self._paths))
        return True

    def _stamp_now(self) -> _Stamp:
        return tuple(map(_stamp, self._paths))


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What changes with a file's content; None without the file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
