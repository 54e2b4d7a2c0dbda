"""A model's folder before anything in it is opened: it holds regular files, and folders of them, or it is refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from neuron_attribution.errors import FailedPreconditionError

from neuron_attribution_server.settings.regular_files import kind

_MOST_ENTRIES = 10_000
_NEVER_READ = ".git"
"""Git keeps a socket there while it watches a folder; no model is loaded from it."""


def check_files(folder: Path) -> None:
    """Look at everything that loading might open, links followed: a FIFO would hold it up, a device never end.

    Raises FailedPreconditionError.
    """
    waiting, seen, entries = [folder], {_identity(folder.stat())}, 0
    while waiting:
        for path, status in _entries(waiting.pop()):
            entries += 1
            if entries > _MOST_ENTRIES:
                raise _refusal(f"{folder} has more than {_MOST_ENTRIES:,} entries; name the folder of one model")
            if not stat.S_ISDIR(status.st_mode):
                check_kind(path, status.st_mode)
            elif path.name != _NEVER_READ and _identity(status) not in seen:
                seen.add(_identity(status))
                waiting.append(path)


def check_kind(path: Path, mode: int) -> None:
    """Refuse what is no regular file. Raises FailedPreconditionError."""
    if other := kind(mode):
        raise _refusal(f"{path} is {other}; a model has regular files only: remove it, or copy the model again")


def status_of(path: Path) -> os.stat_result:
    """What a path leads to, links followed. Raises FailedPreconditionError for a link that leads nowhere."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            raise _refusal(f"{path} is a link that leads nowhere; copy what it stands for, or remove it") from None
        raise


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What a folder holds, but for what this user cannot get at: nobody will open that."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield folder / name, status_of(folder / name)
        except OSError:
            continue


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _refusal(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"model refused: {message}", reason="CANNOT_LOAD")
