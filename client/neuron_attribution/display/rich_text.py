"""Tables for a terminal, drawn by rich.

Without a terminal they are plain text that does not depend on anything's width. Where a terminal is too narrow, rows of
tokens are cut and other text goes on below itself, both in the last column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neuron_attribution.display.table import TextTable

INDENT = 2
UNLIMITED = 1_000_000
"""Columns, where nothing is to be cut."""
QUOTED = r"""(?<!\S)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\S)"""
"""A token, as repr writes it."""


def group(heading: str, tables: Sequence[TextTable]) -> RenderableType:
    """A result under its summary, a blank line between tables."""
    parts = [part for table in tables for part in ("", title(table), rich_table(table))]
    return Group(Text(heading), *parts)


def title(table: TextTable) -> Text:
    """A table's title."""
    return Text(table.title, style="bold")


def rich_table(table: TextTable) -> RenderableType:
    """A table without its title."""
    drawn = Table(box=None, padding=(0, INDENT, 0, 0), header_style="dim", pad_edge=False)
    for name, right in zip(table.names, table.flush_right, strict=True):
        drawn.add_column(Text(name), justify="right" if right else "left")
    for number, row in enumerate(table.rows):
        drawn.add_row(*map(_cell, row, table.flush_right), style="dim" if number in table.faint else None)
    last = len(table.columns) - 1
    for place, column in enumerate(drawn.columns):
        column.no_wrap = place != last
    return Padding(drawn, (0, 0, 0, INDENT), expand=False)


def named_values(pairs: Iterable[tuple[str, str]]) -> RenderableType:
    """Names and their values; a long value goes on below itself."""
    grid = Table.grid(padding=(0, INDENT, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), Text(value))
    return grid


def lines(*parts: RenderableType) -> list[str]:
    """What standard output would show, in colours only where it is a terminal that wants them."""
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, markup=False, color_system=None, width=UNLIMITED)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return [line.rstrip() for line in captured.get().splitlines()]


def _cell(text: str, right: bool) -> Text:
    cell = Text(text, no_wrap=text.startswith(("'", '"')), overflow="ellipsis")
    if right:
        cell.stylize("red" if text.startswith("-") else "cyan")
    else:
        cell.highlight_regex(QUOTED, "green")
    return cell
