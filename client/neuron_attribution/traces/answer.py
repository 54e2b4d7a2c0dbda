"""The answer to a trace, and what it becomes for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.rendering import (
    Displayed,
    circuit_tracer_json,
    edge_data_frame,
    json_text,
    network,
    node_link,
    page,
)
from neuron_attribution.results import ModelIdentity, Timings, Token
from neuron_attribution.traces.graph import Graph

if TYPE_CHECKING:
    import networkx
    import pandas


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trace(Displayed):
    """The answer to a trace: a graph with the exact tokens."""

    model: ModelIdentity
    tokens: tuple[Token, ...]
    graph: Graph
    timings: Timings
    origins: tuple[TokenOrigin, ...] = ()
    """Where each of `tokens` comes from; empty where the prompt is no conversation."""

    def to_html(self) -> str:
        """The graph as one self-contained HTML page, to be walked by mouse or keyboard."""
        return page(self)

    def to_json(self) -> str:
        """The answer as protobuf JSON, as the command line and the calls over HTTP have it."""
        return json_text(self)

    def edges_to_dataframe(self) -> pandas.DataFrame:
        """One row an edge, by target and then by magnitude; `to_dataframe` has the nodes. Needs the extra `pandas`."""
        return edge_data_frame(self)

    def to_node_link(self) -> dict[str, Any]:
        """Nodes and edges as `networkx.node_link_graph` reads them, by the names of nodes; it needs no networkx."""
        return node_link(self)

    def to_graph(self) -> networkx.DiGraph:
        """The same as a graph of networkx. Needs the extra `graphs`."""
        return network(self)

    def to_circuit_tracer(
        self, slug: str = "trace", *, node_threshold: float = 0.8, edge_threshold: float = 0.98
    ) -> dict[str, Any]:
        """The graph as circuit-tracer writes its own, for viewers of those.

        Nodes and edges are kept until they have these shares of all influence on the output; circuit-tracer has the
        same defaults. The influence of a node is the sum over all paths from it to the output of the products of its
        edges' shares of magnitude.
        """
        return circuit_tracer_json(self, slug, node_threshold, edge_threshold)
