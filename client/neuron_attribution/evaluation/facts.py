"""Facts: prompts with the word that is right, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ANSWERS = ("answer", "attribute", "target")
_SURROGATES = re.compile("[\ud800-\udfff]")
TYPES = ("type", "relation_id", "relation")


class FactsError(ValueError):
    """A file of facts cannot be read; the message names the line and the remedy."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A prompt, the word that should follow it, and the type of that word, whose other words compete with it."""

    prompt: str
    answer: str
    type: str

    @property
    def key(self) -> str:
        """What names the fact in a file of results."""
        return hashlib.sha256("\0".join((self.prompt, self.answer, self.type)).encode()).hexdigest()[:16]


def read_facts(path: Path) -> list[Fact]:
    """The facts of a file, each once. Raises FactsError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold what else ends a line in Unicode
    except (OSError, UnicodeDecodeError) as error:
        raise FactsError(f"{path} cannot be read: {error}") from None
    facts = list(dict.fromkeys(_facts(path, lines)))
    if not facts:
        raise FactsError(f"{path} holds no facts")
    return facts


def _facts(path: Path, lines: list[str]) -> Iterator[Fact]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _fact(json.loads(line))
            except (ValueError, AttributeError, TypeError, RecursionError) as error:
                raise FactsError(f"{path}, line {number}: {error}") from None


def _fact(fields: dict[str, object]) -> Fact:
    prompt, answer = fields.get("prompt"), _first(fields, ANSWERS)
    if not (isinstance(prompt, str) and prompt and isinstance(answer, str) and answer):
        raise FactsError(f"needs a text as prompt, and one as {' or '.join(ANSWERS)}")
    fact = Fact(prompt, answer.strip(), str(_first(fields, TYPES) or ""))
    if any(map(_SURROGATES.search, (fact.prompt, fact.answer, fact.type))):
        raise FactsError("holds half of a character (a surrogate), which is no text")
    return fact


def _first(fields: dict[str, object], names: tuple[str, ...]) -> object:
    return next((fields[name] for name in names if name in fields), None)
