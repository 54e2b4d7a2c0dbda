"""How the math libraries are to work. They read it from the environment when they are first used."""

from __future__ import annotations

import os
from pathlib import Path

_CPU = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What the container may use of the processors (control groups, version 2): microseconds, of so many."""


def most_threads(threads: int) -> int:
    """So many threads, or fewer where the container's quota has no processors for them: they would wait for each other.

    A library sees the node's processors, not the quota.
    """
    quota, _, period = (_QUOTA.read_text() if _QUOTA.is_file() else "max").strip().partition(" ")
    return threads if quota == "max" else max(1, min(threads, int(quota) // int(period)))


def configure() -> None:
    """Set what the environment leaves open; call it before PyTorch is imported."""
    # OpenMP threads that wait by spinning take the cores from whoever they wait for: with a second busy process on two
    # cores a call took ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # On Intel's processors MKL divides sums among threads for some numbers of rows, 57 to 192 of the demo model's, and
    # then rounds them otherwise: a sequence would depend on those beside it. Strict reproducibility costs nothing seen.
    if _CPU.is_file() and "GenuineIntel" in _CPU.read_text():
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
