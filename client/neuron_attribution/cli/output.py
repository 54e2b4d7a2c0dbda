"""What the commands print: JSON or CSV for programs, aligned text for people."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from neuron_attribution.cli.options import add_flag
from neuron_attribution.display import rich_text
from neuron_attribution.display.records import Records, Value
from neuron_attribution.display.table import TextTable
from neuron_attribution.display.words import model_text, number, token_list, token_text, visible

__all__ = [
    "Lines",
    "add_output_arguments",
    "facts",
    "json_text",
    "model_text",
    "number",
    "print_result",
    "table",
    "text_tables",
    "token_list",
    "token_text",
    "visible",
]

Lines = list[str]


def add_output_arguments(parser: argparse.ArgumentParser, *, csv: bool = False) -> None:
    """Add the options that choose another form than text: JSON, and with `csv` CSV."""
    forms = parser.add_mutually_exclusive_group()
    add_flag(forms, "--json", help="print the response as protobuf JSON, and nothing else")
    if csv:
        add_flag(forms, "--csv", help="print one row a component as CSV, and nothing else")


def print_result(
    arguments: argparse.Namespace,
    message: Callable[[], Message],
    lines: Callable[[], Lines],
    rows: Callable[[], Records] | None = None,
) -> None:
    """Print an answer in the form that was asked for."""
    if arguments.json:
        print(json_text(message()))
    elif rows is not None and arguments.csv:
        print_csv(rows())
    else:
        print("\n".join(lines()))


def json_text(message: Message) -> str:
    """The canonical JSON with proto field names. Zeros are written, so that every field a reader looks up is there."""
    return MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_csv(rows: Records) -> None:
    """CSV as RFC 4180 has it, but for line ends: an empty field is a value that is not there, a list is JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows.columns)
    writer.writerows(map(_csv_value, row) for row in rows.rows)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A titled table; a column whose name starts with ">" is flush right. The last column may be cut by a terminal."""
    return text_tables([TextTable(title, columns, [[str(cell) for cell in row] for row in rows])])


def text_tables(tables: Sequence[TextTable]) -> Lines:
    """Tables as text, a blank line between them."""
    return [line for each in tables for line in ("", *_table_lines(each))][1:]


def facts(pairs: Iterable[tuple[str, str]]) -> Lines:
    """Named values, aligned."""
    return rich_text.lines(rich_text.named_values(pairs))


def _table_lines(each: TextTable) -> Lines:
    return rich_text.lines(rich_text.title(each), *([rich_text.rich_table(each)] if each.columns else ()))


def _csv_value(value: Value) -> Value:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value
