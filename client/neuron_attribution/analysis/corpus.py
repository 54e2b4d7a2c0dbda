"""Prompts to study: JSON lines, Parquet or plain text, read as a stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_attribution.conversations.messages import Prompt
from neuron_attribution.conversations.written import conversation
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import AttributeOptions, AttributeRequest

FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "text"),
    "token_ids": ("token_ids",),
    "messages": ("messages",),
    "id": ("id", "known_id"),
    "type": ("type", "relation_id"),
    "target": ("target",),
    "completion": ("completion",),
    "answer": ("answer", "attribute"),
    "contrast": ("contrast",),
}
"""What a row may hold, and the names each field goes by. Other fields are left alone."""

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
TEXT = ".txt"
_ROWS_AT_ONCE = 1024
_EXPLAINED = ("target", "completion", "answer")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CorpusItem:
    """One prompt: its number in the corpus, what the corpus says of it, and what is asked.

    `problem` says why there is no request.
    """

    index: int
    text: str | None = None
    id: str | None = None
    type: str | None = None
    answer: str | None = None
    request: AttributeRequest | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file of prompts. With `own_predictions` targets, completions and answers are not what is explained."""

    path: Path
    options: AttributeOptions
    own_predictions: bool = False

    def __post_init__(self) -> None:
        if self.path.suffix not in (*JSON_LINES, PARQUET, TEXT):
            known = ", ".join((*JSON_LINES, PARQUET, TEXT))
            raise InvalidArgumentError.of("PROMPTS", f"{self.path} ends with none of {known}")
        if not self.path.is_file():
            raise InvalidArgumentError.of("PROMPTS", f"there is no file {self.path}")

    def digest(self) -> str:
        """The SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def count(self) -> int:
        """How many prompts there are."""
        return sum(1 for _ in self._records())

    def __iter__(self) -> Iterator[CorpusItem]:
        for index, record in enumerate(self._records()):
            try:
                yield self._item(index, _row(record))
            except (ValueError, RecursionError) as error:  # the second of JSON that is nested too deeply
                yield CorpusItem(index, problem=str(error))

    def _records(self) -> Iterator[Row | bytes]:
        if self.path.suffix == PARQUET:
            return _parquet_rows(self.path)
        lines = _lines(self.path)
        return ({"prompt": _decoded(line)} for line in lines) if self.path.suffix == TEXT else lines

    def _item(self, index: int, row: Row) -> CorpusItem:
        text, answer = _field(row, "prompt", str), _field(row, "answer", str)
        request = AttributeRequest(
            prompt=_prompt(text, row),
            contrast=_field(row, "contrast", str, int),
            options=self.options,
            **({} if self.own_predictions else _explained(row)),
        )
        known_id, kind = _field(row, "id", str, int), _field(row, "type", str, int)
        return CorpusItem(index, _unicode(text), _unicode(known_id), _unicode(kind), _unicode(answer), request)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line.rstrip(b"\r\n")


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowInvalid, parquet

    names = {name for names in FIELDS.values() for name in names}
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in names]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise InvalidArgumentError.of("PROMPTS", f"{path} is no whole Parquet file: {error}") from None


def _decoded(line: bytes) -> str:
    """A line of text. What is no UTF-8 becomes a surrogate, which no request may hold: that row fails by name."""
    return line.decode(errors="surrogateescape")


def _row(record: Row | bytes) -> Row:
    if not isinstance(record, bytes):
        return record
    row = json.loads(record)
    if not isinstance(row, dict):
        raise ValueError("the line is no JSON object")
    return row


def _field(row: Row, name: str, *kinds: type) -> Any:  # noqa: ANN401 - of one of the kinds, or None
    for key in FIELDS[name]:
        value = row.get(key)
        if value is not None:
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{key} is {type(value).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}")
            return value
    return None


def _prompt(text: str | None, row: Row) -> Prompt:
    ids, messages = _field(row, "token_ids", list), _field(row, "messages", list)
    if sum(each is not None for each in (text, ids, messages)) != 1:
        raise ValueError("give one of prompt, token_ids and messages")
    if messages is not None:
        return _conversation(messages)
    return text if text is not None else tuple(_id(each) for each in ids)


def _conversation(messages: list[Any]) -> Prompt:
    try:
        return conversation(messages)
    except InvalidArgumentError as error:
        raise ValueError(error.message) from None


def _explained(row: Row) -> dict[str, Any]:
    """A target is one token's exact text or id, a completion text or ids; an answer follows the prompt and a space.

    Behind messages it follows none: an answer begins there.
    """
    given = [name for name in _EXPLAINED if any(row.get(key) is not None for key in FIELDS[name])]
    if given[:2] == ["target", "completion"]:
        raise ValueError("target and completion exclude each other; give one of them")
    match given[:1]:
        case ["target"]:
            return {"target": _field(row, "target", str, int)}
        case ["completion"]:
            completion = _field(row, "completion", str, list)
            return {"completion": completion if isinstance(completion, str) else tuple(map(_id, completion))}
        case ["answer"]:
            space = "" if row.get("messages") else " "
            return {"completion": space + _field(row, "answer", str).lstrip()}
    return {}


def _id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no token id")
    return value


def _unicode(value: str | int | None) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()
