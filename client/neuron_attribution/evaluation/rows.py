"""What was measured of each fact, one JSON object a line, so that an evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measured:
    """The right token's prediction."""

    probability: float
    log_probability: float
    rank: int


@dataclass(frozen=True, slots=True)
class Row:
    """One fact. `status` is eligible, ineligible or failed; the reason says why, the rest is of eligible facts."""

    key: str
    prompt: str
    answer: str
    type: str
    status: str
    reason: str = ""
    original: Measured | None = None
    without: Mapping[str, Measured] = field(default_factory=dict)
    """By what is taken away."""
    attention_sum: float = 0.0
    ffn_sum: float = 0.0
    layers: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """How many of the neurons that are taken away each layer holds, by their kind."""


class RowFile:
    """The rows so far. Failed facts are tried again; a line that was cut off is not a row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if whole != written:
            os.truncate(path, len(whole))
        self._rows = {row.key: row for row in map(_read, whole.splitlines())}

    @property
    def rows(self) -> list[Row]:
        """Each fact's last row."""
        return list(self._rows.values())

    def is_done(self, key: str) -> bool:
        """Whether a fact needs no further attempt."""
        return key in self._rows and self._rows[key].status != "failed"

    def add(self, row: Row) -> None:
        """Write a row at once."""
        self._rows[row.key] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def _read(line: bytes) -> Row:
    fields = json.loads(line)
    if fields["original"] is not None:
        fields["original"] = Measured(**fields["original"])
    fields["without"] = {name: Measured(**each) for name, each in fields["without"].items()}
    fields["layers"] = {
        name: {int(layer): count for layer, count in counts.items()} for name, counts in fields["layers"].items()
    }
    return Row(**fields)
