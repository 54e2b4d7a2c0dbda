"""How a process died: in words, and whether what it ran can have been the cause."""

from __future__ import annotations

import re
import signal
from pathlib import Path

_COUNTERS = Path("/proc/vmstat")
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that nothing a process computes sends to it. SIGKILL is the system's as well, when memory runs out."""


def killed_for_memory() -> int | None:
    """How many processes this machine has killed because memory ran out; None where it does not say."""
    try:
        counted = re.search(r"^oom_kill (\d+)$", _COUNTERS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if counted is None else int(counted[1])


class Death:
    """The end of a process that was begun when `killed_before` had been killed for memory on its machine."""

    def __init__(self, code: int | None, killed_before: int | None) -> None:
        self._code = code
        now = killed_for_memory()
        self._may_be_memory = killed_before is None or now is None or now > killed_before

    @property
    def is_from_outside(self) -> bool:
        """Whether somebody killed it: nothing that it ran can have done so."""
        if self._code is None or -self._code not in _FROM_OUTSIDE:
            return False
        return -self._code != signal.SIGKILL or not self._may_be_memory

    def describe(self) -> str:
        """The same for people."""
        if self._code is None or self._code >= 0:
            return f"ended with exit code {self._code}"
        try:
            name = signal.Signals(-self._code).name
        except ValueError:
            name = f"signal {-self._code}"
        hint = ""
        if name == "SIGKILL":
            hint = (
                ", as the system does when memory runs out" if self._may_be_memory else ", and not for want of memory"
            )
        return f"was killed by {name}{hint}"
