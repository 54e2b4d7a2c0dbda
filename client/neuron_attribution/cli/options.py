"""Options that also read the environment: `--top-k` is NEURON_ATTRIBUTION_TOP_K where the flag is not given.

A variable is read, and its mistakes reported, only when its option is not on the command line.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, TypeVar

from neuron_attribution.requests import Span

SOME_FAILED = 3
"""Exit status: all was done, but some prompts have failed."""
PREFIX = "NEURON_ATTRIBUTION_"
TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off"}

Kind = TypeVar("Kind", bound=Enum)
Value = TypeVar("Value")
Container = argparse._ActionsContainer


class UsageError(Exception):
    """The command line makes no sense as a whole; exit status 2."""


class EnvironmentValue(str):
    """A default taken from the environment. argparse converts string defaults last, with the option's type."""

    __slots__ = ()


def add_option(
    container: Container,
    flag: str,
    *,
    help: str,
    kind: Callable[[str], object] = str,
    default: object = None,
    required: bool = False,
    many: bool = False,
    metavar: str | None = None,
    shown: str | None = None,
) -> None:
    """Add an option that takes a value, or with `many` any number of values. `shown` is the default in words."""
    value = _environment_value(flag)
    extend: dict[str, Any] = {"action": _Extend, "nargs": "+"} if many else {}
    container.add_argument(
        flag,
        type=_reader(kind, flag, many),
        default=default if value is None else value,
        required=required and value is None,
        metavar=metavar,
        help=_help(help, flag, default if shown is None else shown),
        **extend,
    )


def add_flag(container: Container, flag: str, *, help: str) -> None:
    """Add an option without a value, false unless given."""
    value = _environment_value(flag)
    action = container.add_argument(
        flag, action="store_true", default=False if value is None else value, help=_help(help, flag)
    )
    action.type = _reader(boolean, flag)


def add_switch(container: Container, flag: str, *, help: str) -> None:
    """Add a pair of options, `--flag` and `--no-flag`, None unless given."""
    action = container.add_argument(
        flag, action=argparse.BooleanOptionalAction, default=_environment_value(flag), help=_help(help, flag)
    )
    action.type = _reader(boolean, flag)


def variable(flag: str) -> str:
    """The environment variable of an option."""
    return PREFIX + flag.lstrip("-").upper().replace("-", "_")


def drop_overruled(arguments: argparse.Namespace, words: Sequence[str], flags: Sequence[str]) -> None:
    """Forget what the environment says of options that exclude each other where the command line names one of them."""
    given = [flag for flag in flags if any(word == flag or word.startswith(f"{flag}=") for word in words)]
    for flag in flags if given else ():
        name = flag.lstrip("-").replace("-", "_")
        if flag not in given and hasattr(arguments, name):
            setattr(arguments, name, False if isinstance(getattr(arguments, name), bool) else None)


def argument_type(kind: Callable[[str], Value]) -> Callable[[str], Value]:
    """The type of a positional argument; argparse replaces the message of a ValueError, not this one's."""

    def read(text: str) -> Value:
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def boolean(text: str) -> bool:
    """Read a yes or a no."""
    if text.lower() not in TRUE_WORDS | FALSE_WORDS:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE_WORDS


def whole_number(text: str) -> int:
    """Read a number from 0."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive_number(text: str) -> int:
    """Read a whole number from 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{text!r} is not a whole number from 1")
    return int(text)


def positions(text: str) -> Span:
    """Read two positions."""
    start, colon, end = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not two positions; write START:END")
    return Span(whole_number(start), whole_number(end))


def share(text: str) -> float:
    """Read a part of 1, more than none of it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} is not a share above 0, of at most 1")
    return value


def positive_seconds(text: str) -> float:
    """Read a time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a time in seconds")
    return value


def enum_value(kind: type[Kind]) -> Callable[[str], Kind]:
    """A reader of an enum's values."""

    def read(text: str) -> Kind:
        values = {member.value: member for member in kind}
        if text not in values:
            raise ValueError(f"{text!r} is none of {', '.join(values)}")
        return values[text]

    return read


def comma_separated(kind: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """A reader of several values in one argument."""
    return lambda text: tuple(kind(part.strip()) for part in text.split(","))


class _Extend(argparse.Action):
    """Like argparse's own `extend`, but a value from the environment is replaced, not extended."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        before = given if isinstance(given, list) else []
        setattr(namespace, self.dest, [*before, *(values or ())])


def _environment_value(flag: str) -> EnvironmentValue | None:
    text = os.environ.get(variable(flag))
    return EnvironmentValue(text) if text else None


def _reader(kind: Callable[[str], object], flag: str, many: bool = False) -> Callable[[str], object]:
    def read(text: str) -> object:
        if not isinstance(text, EnvironmentValue):
            return argument_type(kind)(text)
        try:
            return [kind(part) for part in re.split(r"[\s,]+", text.strip())] if many else kind(str(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"environment variable {variable(flag)}: {error}") from None

    return read


def _help(text: str, flag: str, default: object = None) -> str:
    shown = default.value if isinstance(default, Enum) else default
    notes = [] if shown is None else [f"default: {shown}"]
    return f"{text} [{'; '.join([*notes, variable(flag)])}]".replace("%", "%%")
