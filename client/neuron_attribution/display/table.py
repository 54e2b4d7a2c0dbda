"""A table of text, before it is HTML or lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextTable:
    """A titled table; a column whose name starts with ">" is flush right. Without columns it is its title alone."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    faint: frozenset[int] = frozenset()
    """The rows that say less than the others."""

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.removeprefix(">") for column in self.columns]

    @property
    def flush_right(self) -> list[bool]:
        """Which columns are."""
        return [column.startswith(">") for column in self.columns]
