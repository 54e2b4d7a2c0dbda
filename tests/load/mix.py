"""What callers ask for: kinds of request, drawn by weight, as a TOML file says them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MIX = Path(__file__).with_name("mix.toml")
CALLS = ("attribute", "stream", "project", "tokenize")


class MixError(ValueError):
    """A mix that cannot be read; the message names what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request. `tokens`: the fewest and the most of a prompt; `arguments`: those of the client's method."""

    name: str
    call: str
    weight: float = 1.0
    tokens: tuple[int, int] = (8, 24)
    items: int = 1
    neurons: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mix:
    """Kinds of request, and the text that prompts are cut from."""

    kinds: tuple[Kind, ...]
    prose: str

    def only(self, names: tuple[str, ...]) -> Mix:
        """The mix of these kinds alone. Raises MixError for a name it does not have."""
        known = {kind.name: kind for kind in self.kinds}
        missing = [name for name in names if name not in known]
        if missing:
            raise MixError(f"no kind of request is named {missing[0]!r}; there are: {'; '.join(known)}")
        return replace(self, kinds=tuple(known[name] for name in names))


def read_mix(path: Path) -> Mix:
    """The mix of a file. Raises MixError."""
    try:
        tables = tomllib.loads(path.read_text())
        kinds = tuple(_kind(table) for table in tables["kinds"])
        return Mix(kinds, " ".join(tables["prose"]["text"].split()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise MixError(f"{path}: {type(error).__name__}: {error}") from error


def _kind(table: dict[str, Any]) -> Kind:
    kind = Kind(**table)
    if kind.call not in CALLS:
        raise ValueError(f"{kind.name}: call is {kind.call!r}, which is none of {', '.join(CALLS)}")
    return kind
