"""What the process has allocated and needs no more goes back to the system: the heaps' pages where they are glibc's."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import platform
from functools import cache

LARGE = 256 << 10
"""Bytes of a piece of memory that is mapped by itself, and unmapped when it is freed."""
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of mallopt(3)
_ARENAS = 2
_PAUSE_SECONDS = 10.0


def map_large_pieces() -> None:
    """Give each large piece a mapping of its own, and threads two heaps to share.

    By itself glibc puts large pieces into its heaps once one was freed, a heap for each thread; what is torn there by
    small pieces that live longer is kept.
    """
    if library := _glibc():
        library.mallopt(_MMAP_THRESHOLD, LARGE)
        library.mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give back the pages of the heaps that nothing is in; takes milliseconds."""
    if library := _glibc():
        library.malloc_trim(0)


async def keep_giving_back() -> None:
    """Give back what is free every ten seconds, until cancelled.

    Objects that hold each other are found first, which Python by itself does when there are many, not when they are
    large: each dead worker process leaves some, with what it knew of the model. To look at all that a front end has
    takes about 20 ms.
    """
    while True:
        await asyncio.sleep(_PAUSE_SECONDS)
        gc.collect()
        await asyncio.to_thread(give_back)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
