"""Files that a process which is killed, or a full disk, leaves whole; and folders that one process at a time writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuron_attribution.errors import FailedPreconditionError

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where the rest of the client runs
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
_LOCK = ".lock"


def write_text(text: str, path: Path) -> None:
    """Write a text that is there in whole or not at all, whenever the process or the machine ends."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)


def sync(path: Path) -> None:
    """Have what was written on the disk, so that a name which the file gets next is never that of half of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where there is none. Raises FailedPreconditionError for a damaged one."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FailedPreconditionError(
            f"{path} is damaged: it holds no JSON object; put it back, or write to another folder", reason="DAMAGED"
        )
    return found


@contextmanager
def held(folder: Path, what: str, begun: str) -> Iterator[None]:
    """Make a folder and keep others out; the system lets go of it however this process ends.

    `what` is written there, and the file `begun` is there once it was begun. Raises FailedPreconditionError for a
    folder that holds something else or that another process writes to.
    """
    if fcntl is None:
        raise FailedPreconditionError("this system cannot lock a folder; use Linux or macOS", reason="NO_LOCKS")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not any((folder / name).exists() for name in (_LOCK, begun)):
        raise FailedPreconditionError(f"{folder} holds something else; name a new folder", reason="NOT_OURS")
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPreconditionError(f"another {what} writes to {folder}; wait for it", reason="BUSY") from None
        yield
