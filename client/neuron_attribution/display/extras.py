"""What only some need, and how to get it where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Name the extra that an import inside needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        text = f"{what} needs {error.name}, which is not installed: pip install 'neuron-attribution[{extra}]'"
        raise ModuleNotFoundError(text, name=error.name) from error
