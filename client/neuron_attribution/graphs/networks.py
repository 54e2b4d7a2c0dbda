"""A graph as networkx reads it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neuron_attribution.display.extras import needs_extra
from neuron_attribution.display.records import Records, edge_records, records
from neuron_attribution.traces import Trace

if TYPE_CHECKING:
    import networkx


def node_link(trace: Trace) -> dict[str, Any]:
    """The node-link form: nodes with their names as `id`, edges by these. What a node or an edge lacks is left out."""
    graph = trace.graph
    return {
        "directed": True,
        "multigraph": False,
        "graph": {
            "model": asdict(trace.model),
            "tokens": [token.text for token in trace.tokens],
            "positions": list(graph.positions),
            "targets": [target.token.text for target in graph.targets],
            "contrasts": [contrast.token.text for contrast in graph.contrasts],
            "output": graph.output,
            "log_odds": graph.log_odds,
            "coverage": asdict(graph.coverage),
        },
        "nodes": [_named(row, node="", component="id") for row in _rows(records(trace))],
        "edges": [
            _named(row, **{"source": "", "target": "", "from": "source", "to": "target"})
            for row in _rows(edge_records(trace))
        ],
    }


def network(trace: Trace) -> networkx.DiGraph:
    """The graph of networkx."""
    with needs_extra("graphs", "to_graph"):
        import networkx

    found: networkx.DiGraph = networkx.node_link_graph(node_link(trace), edges="edges")
    return found


def _rows(table: Records) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def _named(row: dict[str, Any], **names: str) -> dict[str, Any]:
    """The values that are there, some under another name, or left out where that is empty."""
    renamed = {names.get(name, name): value for name, value in row.items() if value is not None}
    renamed.pop("", None)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in renamed.items()}
