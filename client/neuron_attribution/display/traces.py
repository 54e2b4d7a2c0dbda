"""A graph as tables for people, and its nodes and edges as rows."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_attribution.display.common import COMMON
from neuron_attribution.display.table import TextTable
from neuron_attribution.display.words import number, place, token_list, token_text, visible
from neuron_attribution.results import Token, TokenPrediction
from neuron_attribution.traces import Graph, Trace, TraceNode, TraceNodeKind

SHOWN_PATHS = 10
SHOWN_NEURONS = 20
SHOWN_SOURCES = 10

Value = str | int | float | tuple[str, ...] | None
NODES = (
    *("node", "component", "kind", "layer", "expert", "index", "position", "token", "activation", "effect", "gradient"),
    *("relevance", "other", "always_on", "activity", "promotes"),
)
EDGES = ("source", "target", "from", "to", "contribution", "share", "through", "through_contribution")


def trace_tables(trace: Trace) -> list[TextTable]:
    """What is followed back, how much of it the graph holds, and the strongest paths, neurons and sources."""
    graph, tokens = trace.graph, trace.tokens
    return [
        _prediction_table(graph, tokens),
        coverage_table(graph),
        path_table(trace),
        neuron_table(graph, tokens),
        _source_table(graph, tokens),
    ]


def coverage_table(graph: Graph) -> TextTable:
    """What was looked at, and how much the graph holds of what there is."""
    coverage = graph.coverage
    measured = f"{coverage.neuron_positions:,} exist, {coverage.screened:,} screened, {coverage.measured:,} measured"
    rows = [
        ("log odds" if not graph.contrasts else "logit difference", number(graph.log_odds)),
        ("in the frozen linear model", number(graph.output)),
        ("neurons, each at a position", measured),
        ("carried by its edges to the output", _part(graph, coverage.output_edges)),
        ("by its paths from tokens and biases", _part(graph, coverage.output_paths)),
        ("of all edges into its nodes", f"{coverage.edges:.0%} of their magnitudes"),
    ]
    return TextTable("the graph", ("", "value"), rows)


def _part(graph: Graph, share: float) -> str:
    """A part of the output: a share of one that is nearly zero says little by itself."""
    return f"{number(share * graph.output)}, {share:.0%}"


def path_table(trace: Trace) -> TextTable:
    """The paths from a token to the output that carry most."""
    paths = trace.graph.paths(SHOWN_PATHS)
    rows = [(number(path.contribution), path_text(trace, path.nodes)) for path in paths]
    return TextTable(
        "strongest paths" if rows else "no path leads from a token to the output", (">carries", "path"), rows
    )


def path_text(trace: Trace, path: Sequence[int]) -> str:
    """A path as people read it: `' France'@3 -> 11.1229@3 -> 24.1005@4 -> ' Paris'`."""
    return " -> ".join(node_text(trace, trace.graph.nodes[index]) for index in path)


def node_text(trace: Trace, node: TraceNode) -> str:
    """A node for people: tokens by their texts, and the output by what is predicted."""
    match node.kind:
        case TraceNodeKind.TOKEN if node.position is not None:
            return f"{token_text(trace.tokens[node.position])}@{node.position}"
        case TraceNodeKind.OUTPUT:
            return visible("".join(target.token.text for target in trace.graph.targets))
    return node.name


def neuron_table(graph: Graph, tokens: Sequence[Token]) -> TextTable:
    """The strongest neurons."""
    neurons = [node for node in graph.nodes if node.kind is TraceNodeKind.FFN_NEURON][:SHOWN_NEURONS]
    rows = [
        (
            str(node.neuron),
            "" if node.position is None else place(node.position, tokens),
            number(node.effect),
            number(node.gradient),
            number(node.relevance),
            number(node.activation),
            "" if node.activity is None else f"{node.activity:.0%}",
            token_list(node.promoted),
        )
        for node in neurons
    ]
    columns = ("neuron", "position", ">effect", ">gradient", ">relevance", ">activation", ">active in", "promotes")
    faint = frozenset(index for index, node in enumerate(neurons) if node.always_on or (node.activity or 0) >= COMMON)
    return TextTable("strongest neurons" if rows else "no neuron", columns, rows, faint)


def node_rows(trace: Trace) -> list[tuple[Value, ...]]:
    """A row a node, under NODES."""
    return [
        (
            index,
            node.name,
            node.kind.value,
            node.layer if node.neuron is None else node.neuron.layer,
            None if node.neuron is None else node.neuron.expert,
            None if node.neuron is None else node.neuron.index,
            node.position,
            None if node.position is None else trace.tokens[node.position].text,
            node.activation,
            node.effect,
            node.gradient,
            node.relevance,
            node.other,
            node.always_on,
            node.activity,
            tuple(item.token.text for item in node.promoted) if node.projection else None,
        )
        for index, node in enumerate(trace.graph.nodes)
    ]


def edge_rows(trace: Trace) -> list[tuple[Value, ...]]:
    """A row an edge, under EDGES."""
    nodes = trace.graph.nodes
    return [
        (
            edge.source,
            edge.target,
            nodes[edge.source].name,
            nodes[edge.target].name,
            edge.contribution,
            edge.share,
            None if edge.head is None else str(edge.head),
            edge.head_contribution,
        )
        for edge in trace.graph.edges
    ]


def _prediction_table(graph: Graph, tokens: Sequence[Token]) -> TextTable:
    contrasts: Sequence[TokenPrediction | None] = graph.contrasts or [None] * len(graph.targets)
    rows = [
        (place(position, tokens), *_prediction_cells(target), *_prediction_cells(contrast))
        for position, target, contrast in zip(graph.positions, graph.targets, contrasts, strict=True)
    ]
    columns = ("after position", "token", ">probability", ">rank", "contrast", ">its probability", ">its rank")
    shown = len(columns) if graph.contrasts else 4
    return TextTable("what is followed back", columns[:shown], [row[:shown] for row in rows])


def _prediction_cells(prediction: TokenPrediction | None) -> tuple[str, str, str]:
    if prediction is None:
        return "", "", ""
    return token_text(prediction.token), number(prediction.probability), str(prediction.rank)


def _source_table(graph: Graph, tokens: Sequence[Token]) -> TextTable:
    """Tokens and biases, by the magnitude of their relevance."""
    sources = [node for node in graph.nodes if node.kind in (TraceNodeKind.TOKEN, TraceNodeKind.BIAS)]
    sources.sort(key=lambda node: -abs(node.relevance))
    rows = [
        (
            f"biases of layer {node.layer}" if node.position is None else place(node.position, tokens),
            number(node.relevance),
        )
        for node in sources[:SHOWN_SOURCES]
    ]
    return TextTable("tokens and biases", ("source", ">relevance"), rows)
