"""How many examples something is tried on: all of them, or a few for `make check`."""

import os
from collections.abc import Iterable
from typing import TypeVar

Value = TypeVar("Value")
QUICK = "QUICK" in os.environ


def examples(number: int) -> int:
    """So many, or a tenth of them."""
    return max(1, number // 10) if QUICK else number


def few(values: Iterable[Value], number: int = 1) -> list[Value]:
    """All of them, or so many that lie evenly among them."""
    every = list(values)
    return every[:: -(-len(every) // number)] if QUICK else every
