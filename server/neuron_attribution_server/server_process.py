"""The server in a process of its own, which ends when it should, whatever holds it."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
import threading
from contextlib import suppress

from neuron_attribution_server.app import Application
from neuron_attribution_server.settings import heap

_LOG_SECONDS = 0.5

_log = logging.getLogger(__name__)


def serve(application: Application) -> int:
    """Serve until a stop signal; return the exit status. The process cannot outlive the end by more than seconds."""
    _allow_files()
    heap.map_large_pieces()
    return asyncio.run(application.run(_Exit()))


def _allow_files() -> None:
    """Each connection takes a file descriptor; the lower limit is for programs that cannot count further."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Exit:
    """The last resort: threads that do not end would hold the process."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def within(self, seconds: float, status: int) -> None:
        if self._timer is None:
            self._timer = threading.Timer(seconds, _exit, (seconds, status))
            self._timer.daemon = True
            self._timer.start()


def _exit(seconds: float, status: int) -> None:
    try:
        for worker in multiprocessing.active_children():
            worker.kill()
        line = ("the server did not end in %g seconds; it ends now, with exit status %d", seconds, status)
        telling = threading.Thread(target=_log.error, args=line, daemon=True)  # whoever reads the log may be stuck, too
        telling.start()
        telling.join(_LOG_SECONDS)
    finally:
        os._exit(status)
