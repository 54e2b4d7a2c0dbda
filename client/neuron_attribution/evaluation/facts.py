"""Facts: prompts with the word that is right, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.conversations.written import conversation
from neuron_attribution.errors import InvalidArgumentError

ANSWERS = ("answer", "attribute", "target")
_SURROGATES = re.compile("[\ud800-\udfff]")
TYPES = ("type", "relation_id", "relation")


class FactsError(ValueError):
    """A file of facts cannot be read; the message names the line and the remedy."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A prompt, the word that should follow it, and the type of that word, whose other words compete with it."""

    prompt: str
    """Of messages the last content, which names the fact for people."""
    answer: str
    type: str
    messages: str = ""
    """What is asked where it is a conversation: its messages as JSON."""

    @property
    def asked(self) -> str | Conversation:
        """What the model is asked."""
        return conversation(json.loads(self.messages)) if self.messages else self.prompt

    @property
    def key(self) -> str:
        """What names the fact in a file of results."""
        said = (self.messages or self.prompt, self.answer, self.type)
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


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
    prompt, answer, messages = fields.get("prompt"), _first(fields, ANSWERS), fields.get("messages")
    if messages is not None:
        if prompt is not None:
            raise FactsError("has a prompt and messages; give one of them")
        prompt = _last_content(messages)
    if not (isinstance(prompt, str) and prompt and isinstance(answer, str) and answer):
        raise FactsError(f"needs a text as prompt, and one as {' or '.join(ANSWERS)}")
    talk = "" if messages is None else json.dumps(messages, ensure_ascii=False)
    fact = Fact(prompt, answer.strip(), str(_first(fields, TYPES) or ""), talk)
    if any(map(_SURROGATES.search, (fact.prompt, fact.answer, fact.type, fact.messages))):
        raise FactsError("holds half of a character (a surrogate), which is no text")
    return fact


def _last_content(messages: object) -> str | None:
    try:
        return conversation(messages).messages[-1].content  # type: ignore[arg-type]  # what is none is refused
    except (InvalidArgumentError, IndexError) as error:
        raise FactsError(f"messages: {error}") from None


def _first(fields: dict[str, object], names: tuple[str, ...]) -> object:
    return next((fields[name] for name in names if name in fields), None)
