"""Texts to token ids and back, exactly: over the tokenizers library, without torch or transformers."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cached_property
from itertools import accumulate
from typing import Any

from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.results import Token, TokenizedToken, TokenizerFacts
from tokenizers import Encoding, Tokenizer

from neuron_attribution_server.tasks.checks import quotable

_SHOWN_PIECES = 8


class ExactTokenizer:
    """A model's tokenizer, from the tokenizers library's JSON. Safe to share between threads."""

    def __init__(self, serialized: str) -> None:
        self._tokenizer = Tokenizer.from_str(_with_whole_offsets(serialized))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._texts = {id: token.content for id, token in added.items()}
        self._special = frozenset(id for id, token in added.items() if token.special)
        self._anchor = self._ids("a")[-1:]
        self._anchor_text = self._decode([])

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[TokenizedToken]:
        """The tokens of a text with their byte offsets in its UTF-8 form; None adds special tokens by default.

        Tokens that share one character, as byte-level tokenizers make them, all have that character's offsets.
        """
        return self.encoded(text, add_special_tokens is not False)[0]

    def encoded(self, text: str, add_special_tokens: bool) -> tuple[list[TokenizedToken], list[tuple[int, int]]]:
        """The tokens of a text as `encode` gives them, and where each starts and ends in characters."""
        encoding = self._encoding(text, add_special_tokens)
        starts = range(len(text) + 1) if text.isascii() else _byte_starts(text)
        tokens = [
            TokenizedToken(self.token(id), starts[start], starts[end])
            for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return tokens, encoding.offsets

    def ids(self, text: str, add_special_tokens: bool | None = None) -> tuple[int, ...]:
        """The token ids of a text."""
        return tuple(self._encoding(text, add_special_tokens is not False).ids)

    def continuation(self, text: str) -> tuple[int, ...]:
        """The token ids of a text that follows a prompt.

        SentencePiece tokenizers put a space before a text; behind a line break they do not.
        """
        plain = self._ids(text)
        if not self._adds_space:
            return tuple(plain)
        line_break, both = self._ids("\n"), self._ids("\n" + text)
        count = len(line_break)
        return tuple(both[count:] if both[:count] == line_break else plain)

    def text(self, id: int) -> str:
        """A token's exact text, leading space and all; bytes that are no whole character show as U+FFFD."""
        text = self._texts.get(id)
        if text is None:
            text = self._texts[id] = self._decode([id]).removeprefix(self._anchor_text)
        return text

    def token(self, id: int) -> Token:
        """A token's id and exact text."""
        return Token(id, self.text(id))

    def is_special(self, id: int) -> bool:
        """Whether a token is none of a text's own, as those that end one."""
        return id in self._special

    def token_named(self, text: str, field: str) -> int:
        """The one token whose exact text is `text`; `field` is the path an error names.

        Raises InvalidArgumentError for a text that is not exactly one token.
        """
        if not text:
            raise InvalidArgumentError.of(field, "is empty; name a token by its exact text or its id")
        for ids in (self._ids(text), self.continuation(text)):
            if len(ids) == 1 and self.text(ids[0]) == text:
                return ids[0]
        same = self._ids_by_text.get(text, ())
        if len(same) == 1:
            return same[0]
        raise InvalidArgumentError.of(field, self._why_not_one(text, same), reason="NOT_ONE_TOKEN")

    @cached_property
    def longest_token(self) -> int:
        """The largest number of characters in any token."""
        return max(map(len, self._tokenizer.get_vocab()))

    @cached_property
    def facts(self) -> TokenizerFacts:
        """What the tokenizer adds to a text by itself."""
        bare, full = self._ids("a"), self.ids("a")
        start = next((i for i in range(len(full)) if list(full[i : i + len(bare)]) == bare), 0)
        prefix, suffix = full[:start], full[start + len(bare) :]
        return TokenizerFacts(bool(prefix or suffix), tuple(map(self.token, prefix)), tuple(map(self.token, suffix)))

    @cached_property
    def _adds_space(self) -> bool:
        return self.text(self._ids("a")[0]).startswith(" ")

    @cached_property
    def _ids_by_text(self) -> dict[str, list[int]]:
        """Every token's text: a second or so for a large vocabulary, so only when a text needs it."""
        table = defaultdict(list)
        for id in range(self._tokenizer.get_vocab_size(with_added_tokens=True)):
            table[self.text(id)].append(id)
        return dict(table)

    def _why_not_one(self, text: str, same: list[int] | tuple[()]) -> str:
        if same:
            return f"{_quoted(text)} is the text of {len(same)} tokens; name one by its id, such as {same[0]}"
        ids = self.continuation(text)
        pieces = [self._shown(id) for id in ids[:_SHOWN_PIECES]]
        if len(ids) == 1:
            return f"no token's text is exactly {_quoted(text)}; the nearest is {pieces[0]}: name it or its id"
        shown = ", ".join(pieces) + (", ..." if len(ids) > _SHOWN_PIECES else "")
        return f"{_quoted(text)} is {len(ids)} tokens: {shown}; name one of them or its id"

    def _shown(self, id: int) -> str:
        text = self.text(id)
        return f"{_quoted(text)} (id {id})" if "\ufffd" in text else _quoted(text)

    def _encoding(self, text: str, add_special_tokens: bool) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _ids(self, text: str) -> list[int]:
        """The ids of a text alone, without special tokens."""
        return list(self._encoding(text, add_special_tokens=False).ids)

    def _decode(self, ids: list[int]) -> str:
        """The text behind an anchor token, anchor included: decoders drop the space before a text's first token."""
        return str(self._tokenizer.decode(self._anchor + ids, skip_special_tokens=False))


def _quoted(text: str) -> str:
    return json.dumps(quotable(text), ensure_ascii=False)


def _byte_starts(text: str) -> list[int]:
    """The byte each character starts at in UTF-8, and the text's length in bytes."""
    return list(accumulate((len(character.encode()) for character in text), initial=0))


def _with_whole_offsets(serialized: str) -> str:
    """Some post-processors cut the leading space out of a token's offsets; here a token covers all of its text."""
    settings = json.loads(serialized)
    _disable_trimming(settings.get("post_processor"))
    return json.dumps(settings)


def _disable_trimming(processor: dict[str, Any] | None) -> None:
    if processor is None:
        return
    if "trim_offsets" in processor:
        processor["trim_offsets"] = False
    for inner in processor.get("processors", ()):
        _disable_trimming(inner)
