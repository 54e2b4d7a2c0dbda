"""Files that are named from outside: only regular ones are opened, and they are read whole, up to a bound.

Whoever opens a FIFO waits for somebody to write into it, and a device may never end or act on being opened.
"""

from __future__ import annotations

import os
import stat

from neuron_attribution_server.settings.config import ConfigurationError

MOST_BYTES = 2**20
"""The largest file that is read whole: as much as a Secret of Kubernetes holds."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def kind(mode: int) -> str:
    """What a mode, symbolic links followed, is the mode of: empty for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def read_whole(path: str, setting: str) -> bytes:
    """The content of a file that a setting names. Raises ConfigurationError where it is not to be had at once."""
    try:
        _check(path, setting, os.stat(path).st_mode)
        # It may have been replaced since: without O_NONBLOCK, opening what is a FIFO now would wait.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            _check(path, setting, os.fstat(file.fileno()).st_mode)
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{setting}: cannot read {path}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise ConfigurationError(f"{setting}: {path} is larger than {MOST_BYTES:,} bytes, which no such file needs")
    return content


def _check(path: str, setting: str, mode: int) -> None:
    other = kind(mode)
    if other:
        raise ConfigurationError(
            f"{setting}: cannot read {path}: it is {other}; name a regular file, which can be read again"
        )
