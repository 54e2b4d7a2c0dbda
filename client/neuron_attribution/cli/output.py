"""What the commands print: JSON for programs, aligned text for people."""

from __future__ import annotations

import argparse
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from neuron_attribution.cli.options import add_flag
from neuron_attribution.results import ModelIdentity, ProjectedToken, Token

Lines = list[str]
INDENT = "  "


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses between text and JSON."""
    add_flag(parser, "--json", help="print the response as protobuf JSON, and nothing else")


def print_result(arguments: argparse.Namespace, message: Callable[[], Message], lines: Callable[[], Lines]) -> None:
    """Print an answer in the form that was asked for."""
    print(json_text(message()) if arguments.json else "\n".join(lines()))


def json_text(message: Message) -> str:
    """The canonical JSON with proto field names. Zeros are written, so that every field a reader looks up is there."""
    return MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def visible(text: str) -> str:
    """A token's text in quotes, spaces and line ends and all; nothing in it can reach the terminal as a command."""
    return repr(text)


def token_text(token: Token) -> str:
    """A token for people."""
    return visible(token.text)


def token_list(tokens: Iterable[ProjectedToken]) -> str:
    """The tokens of a projection in a row."""
    return " ".join(token_text(item.token) for item in tokens)


def number(value: float | None) -> str:
    """A score with four decimals; one too small for that with its exponent."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or not abs(value) < 0.001 else f"{value:.1e}"


def model_text(model: ModelIdentity) -> str:
    """The model an answer comes from."""
    return f"{model.name} (revision {model.revision}, {model.dtype})"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A titled table; a column whose name starts with ">" is flush right. The last column may be cut by a terminal."""
    names = [column.removeprefix(">") for column in columns]
    cells = [names, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    right = [column.startswith(">") for column in columns]
    return [title, *(_clip(INDENT + INDENT.join(map(_pad, row, widths, right))) for row in cells)]


def facts(pairs: Iterable[tuple[str, str]]) -> Lines:
    """Named values, aligned."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name.ljust(width)}{INDENT}{value}".rstrip() for name, value in pairs]


def display_width(text: str) -> int:
    """The columns a terminal needs: two for wide characters, none for combining ones."""
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(cell))
    return space + cell if right else cell + space


def _clip(line: str) -> str:
    line = line.rstrip()
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    while display_width(line) > width:
        line = line[:-2] + "…"
    return line
