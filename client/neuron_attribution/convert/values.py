"""Checks of single values, and the small conversions every message shares."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.results import Scores

LARGEST_UNSIGNED = 2**32 - 1
NANOSECONDS = 1_000_000_000

Value = TypeVar("Value")
Converted = TypeVar("Converted")


def unsigned(value: int, field: str, largest: int = LARGEST_UNSIGNED) -> int:
    """The value as a plain int that fits a uint32 field, or one of up to `largest`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not 0 <= number <= largest:
        raise InvalidArgumentError.of(field, f"{value!r} is not a whole number from 0 to {largest}")
    return number


def unicode_text(value: str, field: str) -> str:
    """The text, if it can be written as UTF-8: lone surrogates cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError.of(
            field, f"character {error.start} is no Unicode character; give text that is valid UTF-8"
        ) from None
    return value


def not_empty(value: str, field: str) -> str:
    """The text, unless it is empty."""
    if not value:
        raise InvalidArgumentError.of(field, "is empty; give at least one token")
    return value


def at_least_one(value: int, field: str) -> int:
    """The number, unless it is zero."""
    if value < 1:
        raise InvalidArgumentError.of(field, "is 0; give at least 1")
    return value


def value_or(message: Message, field: str, default: int) -> int:
    """An `optional` field's value, or the default where it is absent."""
    return int(getattr(message, field)) if message.HasField(field) else default


def present(message: Message, field: str, convert: Callable[[Any], Converted]) -> Converted | None:
    """A field's converted value, or None where it is absent."""
    return convert(getattr(message, field)) if message.HasField(field) else None


def unless_none(value: Value | None, convert: Callable[[Value], Converted]) -> Converted | None:
    """The converted value; None stays None, which leaves a message's field absent."""
    return None if value is None else convert(value)


def numbers(array: Scores) -> list[float]:
    """The numbers of an array, row by row. A list fills a repeated field several times faster than an array."""
    values: list[float] = np.asarray(array, dtype=np.float32).ravel().tolist()
    return values


def scores(values: Iterable[float]) -> Scores:
    """The array of a repeated field."""
    return np.array(list(values), dtype=np.float32)


def duration(seconds: float) -> Duration:
    """Seconds as a Duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * NANOSECONDS))
    return message


def seconds(message: Duration) -> float:
    """A Duration in seconds."""
    return message.ToNanoseconds() / NANOSECONDS
