"""How many examples a property is tried on: all of them, or a tenth for `make check`."""

import os

QUICK = "QUICK" in os.environ


def examples(number: int) -> int:
    """So many, or a tenth of them."""
    return max(1, number // 10) if QUICK else number
