"""The aggregates as Markdown, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from neuron_attribution.analysis.aggregates import TYPES_COMPARED, Aggregates

ROWS = 15
"""Rows of each table."""
_TYPES_SHOWN = 12
_TOKENS_SHOWN = 6
_KINDS = {
    "ffn": "FFN value neurons",
    "attention": "Attention value neurons",
    "query": "Query FFN neurons",
}

Lines = list[str]
Facts = dict[str, Any]


def summary(aggregates: Aggregates, conditions: Facts) -> str:
    """All of it. The same aggregates and conditions give the same text."""
    lines = ["# Study of a corpus", "", *_conditions(conditions), *_statuses(aggregates["statuses"])]
    lines += _layers(aggregates["layers"], aggregates["layer_neurons"])
    lines += _heads(aggregates["heads"])
    for kind, title in _KINDS.items():
        lines += _neurons(aggregates["neurons"], kind, title, conditions["options"]["top_k"])
    lines += _shared(aggregates["shared_neurons"], conditions["options"]["top_k"])
    return "\n".join(lines).rstrip() + "\n"


def _conditions(conditions: Facts) -> Lines:
    corpus, options, model = conditions["corpus"], conditions["options"], conditions.get("model", {})
    return _table(
        ("condition", "value"),
        [
            ("corpus", f"{corpus['prompts']:,} prompts, sha256 {corpus['sha256'][:12]}"),
            ("model", f"{model['name']}, revision {model['revision']}, {model['dtype']}" if model else "none answered"),
            *((name.replace("_", " "), _text(value)) for name, value in sorted(options.items()) if value is not None),
        ],
    )


def _statuses(statuses: pa.Table) -> Lines:
    return ["## Prompts", "", *_table(("status", ">prompts"), _rows(statuses, "status", "prompts"))]


def _layers(layers: pa.Table, neurons: pa.Table) -> Lines:
    if not len(layers):
        return []
    counts = {
        (row["kind"], row["layer"]): row["neurons_per_token"]
        for row in neurons.to_pylist()
        if row["type"] is None and row["direction"] == "increase"
    }
    rows = []
    for row in layers.filter(pc.is_null(layers["type"])).to_pylist():
        found = [counts.get((kind, row["layer"]), 0.0) for kind in _KINDS]
        rows.append((row["layer"], row["attention_score"], row["ffn_score"], *found))
    columns = (">layer", ">attention score", ">FFN score", ">FFN neurons", ">attention neurons", ">query neurons")
    text = "Mean scores, and neurons in the rankings of highest scores, for each explained token."
    return ["## Layers", "", text, "", *_table(columns, rows)]


def _heads(heads: pa.Table) -> Lines:
    if not len(heads):
        return []
    whole = heads.filter(pc.is_null(heads["type"])).slice(0, ROWS)
    rows = [(f"{row['layer']}.h{row['head']}", row["mean_score"], row["strongest_share"]) for row in whole.to_pylist()]
    title = ["## Heads", "", *_table(("head", ">mean score", ">among the strongest in"), rows)]
    return title + _heads_by_type(heads.filter(pc.is_valid(heads["type"])))


def _heads_by_type(heads: pa.Table) -> Lines:
    types = sorted(set(heads["type"].to_pylist()))[:_TYPES_SHOWN]
    if not types:
        return []
    rows = []
    for name in types:
        strongest = heads.filter(pc.field("type") == name).slice(0, 5).to_pylist()
        rows.append((name, ", ".join(f"{row['layer']}.h{row['head']} ({row['mean_score']:.3f})" for row in strongest)))
    return ["### By answer type", "", *_table(("type", "strongest heads (mean score)"), rows)]


def _neurons(neurons: pa.Table, kind: str, title: str, top_k: int) -> Lines:
    chosen = neurons.filter((pc.field("kind") == kind) & (pc.field("direction") == "increase")).slice(0, ROWS)
    if not len(chosen):
        return []
    rows = [
        (_name(row), row["share"], row["types"], row["mean_score"], row["mean_rank"], _promoted(row))
        for row in chosen.to_pylist()
    ]
    tokens = "top / bottom tokens" if kind == "query" else "promotes"
    columns = ("neuron", f">in the top {top_k} of", ">types", ">mean score", ">mean rank", tokens)
    return [f"## {title}", "", *_table(columns, rows)]


def _shared(shared: pa.Table, top_k: int) -> Lines:
    rows = shared.filter((pc.field("direction") == "increase") & (pc.field("kind") != "query"))
    if not len(rows):
        return []
    ordered = rows.sort_by([("share", "descending"), ("type_a", "ascending"), ("type_b", "ascending")])
    text = f"Of the {top_k} strongest neurons of each type ({TYPES_COMPARED} types at most)."
    lines = ["## Neurons that types share", "", text]
    for kind in sorted(set(ordered["kind"].to_pylist())):
        chosen = ordered.filter(pc.field("kind") == kind).slice(0, ROWS)
        columns = ("type", "and type", ">shared", ">share")
        lines += ["", f"### {_KINDS[kind]}", "", *_table(columns, _rows(chosen, "type_a", "type_b", "shared", "share"))]
    return lines


def _name(row: Facts) -> str:
    head = "" if row["head"] is None else f"{row['head']}."
    expert = "" if row["expert"] is None else f"e{row['expert']}."
    return f"{row['layer']}.{head}{expert}{row['index']}"


def _promoted(row: Facts) -> str:
    """The tokens of the side that it promotes more often; of a query neuron, whose side is unknown, both."""
    top, bottom = row["top_tokens"], row["bottom_tokens"]
    if row["kind"] == "query":
        return f"{_codes(top[: _TOKENS_SHOWN // 2])} / {_codes(bottom[: _TOKENS_SHOWN // 2])}"
    return _codes((top if row["promotes_top_share"] >= 0.5 else bottom)[:_TOKENS_SHOWN])


def _codes(tokens: Sequence[str]) -> str:
    return " ".join(f"`{_inert(token)}`" for token in tokens)


def _inert(token: str) -> str:
    """A token's text, which may hold anything, as a piece of code in a table."""
    shown = token if token.isprintable() else ascii(token)[1:-1]
    return shown.replace("|", "\\|").replace("`", "'")


def _rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns) for row in table.to_pylist()]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Lines:
    """A table; a column whose name starts with ">" is flush right."""
    marks = ["---:" if column.startswith(">") else "---" for column in columns]
    cells = [[column.removeprefix(">") for column in columns], marks, *([_text(cell) for cell in row] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
