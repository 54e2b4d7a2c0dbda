"""Tables as HTML for notebooks: no scripts, no styles but alignment, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from neuron_attribution.display.table import TextTable

MOST_ROWS = 20
"""Of a table; what is left out is counted below it."""
_ALIGN = ("left", "right")
_CELL = "white-space:nowrap"


def html_text(heading: str, tables: Sequence[TextTable]) -> str:
    """A result: one table as it is, several folded under their titles, the first one open."""
    if len(tables) == 1:
        return f"<div>{_heading(heading)}{_table(tables[0])}</div>"
    folded = "".join(_folded(table, is_open=number == 0) for number, table in enumerate(tables))
    return f"<div>{_heading(heading)}{folded}</div>"


def _heading(text: str) -> str:
    return f"<div><code>{escape(text)}</code></div>"


def _folded(table: TextTable, *, is_open: bool) -> str:
    return f"<details{' open' * is_open}><summary>{escape(table.title)}</summary>{_rows(table)}</details>"


def _table(table: TextTable) -> str:
    return f"<div>{escape(table.title)}</div>{_rows(table)}"


def _rows(table: TextTable) -> str:
    if not table.rows:
        return ""
    head = _row("th", table.names, table.flush_right)
    rows = enumerate(table.rows[:MOST_ROWS])
    body = "".join(_row("td", row, table.flush_right, is_faint=number in table.faint) for number, row in rows)
    more = len(table.rows) - MOST_ROWS
    note = f"<div>… {more} more: to_dataframe() has them all</div>" if more > 0 else ""
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{note}"


def _row(kind: str, cells: Sequence[str], right: Sequence[bool], *, is_faint: bool = False) -> str:
    marked = zip(cells, right, strict=True)
    style = ' style="opacity:0.55"' if is_faint else ""
    return f"<tr{style}>{''.join(_cell(kind, text, _ALIGN[flush]) for text, flush in marked)}</tr>"


def _cell(kind: str, text: str, align: str) -> str:
    return f'<{kind} style="text-align:{align};{_CELL}">{escape(text)}</{kind}>'
