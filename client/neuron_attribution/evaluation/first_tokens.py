"""The first token of a word that follows a prompt, as the service itself cuts a completion."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from neuron_attribution.results import Token, TokenizeResult


class Tokenizes(Protocol):
    """What cuts a text into tokens: a client."""

    def tokenize(self, text: str, *, add_special_tokens: bool | None) -> TokenizeResult:
        """The tokens of a text."""
        ...


class FirstTokens:
    """Asks the service about each word once."""

    def __init__(self, service: Tokenizes) -> None:
        self._service = service
        self._known: dict[str, int] = {}

    def of(self, word: str, *, begins: bool = False) -> int:
        """The id of a word's first token where the word follows a text and a space, or begins an answer."""
        text = word if begins else f" {word}"
        if text not in self._known:
            self._known[text] = self._continuation(text)[0].id
        return self._known[text]

    def _continuation(self, text: str) -> list[Token]:
        """SentencePiece tokenizers put a space before a text; behind a line break they do not."""
        if self._adds_space:
            line_break, both = self._tokens("\n"), self._tokens("\n" + text)
            count = len(line_break)
            if both[:count] == line_break:
                return both[count:]
        return self._tokens(text)

    @cached_property
    def _adds_space(self) -> bool:
        return self._tokens("a")[0].text.startswith(" ")

    def _tokens(self, text: str) -> list[Token]:
        return [each.token for each in self._service.tokenize(text, add_special_tokens=False).tokens]
