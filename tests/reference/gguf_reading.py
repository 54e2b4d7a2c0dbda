"""GGUF files as transformers reads them, faster."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import numpy as np
import pytest


class _PlainReader(gguf.GGUFReader):
    """Reads from a plain array: each of a million slices of a mapped file would run NumPy's Python code three times."""

    @property
    def data(self) -> np.ndarray:
        """The file's bytes."""
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._data = np.asarray(mapped)


@contextmanager
def reading_once() -> Iterator[None]:
    """A file is read once, of the three times that transformers would; names are mapped once, not for each module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "GGUFReader", functools.cache(_PlainReader))
        patched.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        yield
