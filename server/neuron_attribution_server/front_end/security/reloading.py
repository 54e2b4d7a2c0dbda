"""A value read from files, and read again when they change."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from neuron_attribution_server.settings.config import ConfigurationError

Value = TypeVar("Value")
_Stamp = tuple[int, int, int, int, int]
_Stamps = tuple[_Stamp | None, ...]

_COARSEST_CLOCK = 2 * 10**9
"""Nanoseconds within which a second change may leave the times of the first: some file systems count by two seconds."""

_log = logging.getLogger(__name__)


class Reloaded(Generic[Value]):
    """What `read` makes of some files. A change that cannot be read is tried again at each look; the old value stays.

    `read` raises ConfigurationError; so does the constructor. `interval` is the least time between two looks at the
    files, in seconds. Threads may share it. `value` is another object only where it is another value.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], Value], interval: float = 0.0) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._interval = interval
        self._looking = threading.Lock()
        self._looked = time.monotonic()
        self._failure = ""
        self._failing_since = 0.0
        self._stamps, self._settled = self._look()
        self.value = read()

    def refresh(self) -> None:
        """Read the files again if they have changed, or could not be read the last time."""
        with self._looking:
            now = time.monotonic()
            if now - self._looked < self._interval:
                return
            self._looked = now
            stamps, settled = self._look()
            if stamps != self._stamps or not self._settled or self._failure:
                self._reload(stamps, settled)

    def failing(self) -> bool:
        """Look at the files; return whether they cannot be read, so that the value may be out of date."""
        self.refresh()
        return bool(self._failure)

    def _reload(self, stamps: _Stamps, settled: bool) -> None:
        try:
            value = self._read()
        except ConfigurationError as error:
            self._failed(str(error))
            return
        if self._look()[0] != stamps:
            return  # half of it may be older than the rest; the next look reads it again
        if stamps != self._stamps or self._failure:
            self._succeeded()
        self._stamps, self._settled = stamps, settled
        if value != self.value:
            self.value = value

    def _failed(self, failure: str) -> None:
        """Say so once, however often it is tried."""
        if not self._failure:
            self._failing_since = self._looked
        if failure != self._failure:
            _log.error("%s; what was read before stays in use until it can be read", failure)
        self._failure = failure

    def _succeeded(self) -> None:
        paths = ", ".join(self._paths)
        if self._failure:
            _log.warning("read again: %s, after %.0f seconds of failing", paths, self._looked - self._failing_since)
        else:
            _log.info("read again: %s", paths)
        self._failure = ""

    def _look(self) -> tuple[_Stamps, bool]:
        """What changes with the files' content, and whether every later change will change it."""
        stamps = tuple(map(_stamp, self._paths))
        return stamps, all(stamp is not None and time.time_ns() - stamp[-1] > _COARSEST_CLOCK for stamp in stamps)


def _stamp(path: str) -> _Stamp | None:
    """What changes with a file's content, whatever its owner sets its time to; None without the file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
