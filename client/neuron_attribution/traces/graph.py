"""The graph of a prediction: its nodes, its edges, and what it leaves out.

Edges and relevances are exact in the frozen linear model: attention weights, the scales of all norms and, of every FFN
neuron, the factor beside its subkey stay as they were in the prompt's own pass. Effects are measured by intervention.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from graphlib import TopologicalSorter
from heapq import nlargest

from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.results import ProjectedToken, Projection, PromotedSide, TokenPrediction


class TraceNodeKind(Enum):
    """What a node of a graph is."""

    TOKEN = "token"
    """The embedding of a token at its position."""
    FFN_NEURON = "ffn-neuron"
    """An FFN neuron at one position."""
    BIAS = "bias"
    """The biases that a layer writes, together, over all positions."""
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class TraceNode:
    """One node of a graph.

    `activation` is a neuron's coefficient and the output's value, 1 for tokens and biases. `effect` is the output's
    real log odds (logit difference, with a contrast) less what they are when the neuron is zeroed at its position, None
    where that was not measured. `gradient` is the real log odds' gradient times the activation, of neurons only.
    `relevance` is the activation times the output's gradient in the frozen linear model. `other` is the sum of the
    incoming edges that the graph leaves out: with those in it, it is the activation.
    """

    kind: TraceNodeKind
    activation: float
    relevance: float
    neuron: FfnNeuron | None = None
    position: int | None = None
    layer: int | None = None
    effect: float | None = None
    gradient: float | None = None
    projection: Projection | None = None
    promoted_side: PromotedSide = PromotedSide.UNKNOWN
    always_on: bool = False
    activity: float | None = None
    other: float = 0.0

    @property
    def name(self) -> str:
        """What no other node of its graph is called: `24.1005@4` (a neuron at position 4), `token@4`, `biases@3` (those
        of layer 3), `output`.
        """
        match self.kind:
            case TraceNodeKind.FFN_NEURON:
                return f"{self.neuron}@{self.position}"
            case TraceNodeKind.TOKEN:
                return f"token@{self.position}"
            case TraceNodeKind.BIAS:
                return f"biases@{self.layer}"
            case TraceNodeKind.OUTPUT:
                return "output"

    @property
    def promoted(self) -> tuple[ProjectedToken, ...]:
        """The tokens that a neuron raises in this prompt, strongest first."""
        projection = self.projection or Projection()
        return projection.bottom if self.promoted_side is PromotedSide.BOTTOM else projection.top


@dataclass(frozen=True, slots=True)
class TraceEdge:
    """What the node `source` gives the node `target` (indices) by the residual stream and attention alone."""

    source: int
    target: int
    contribution: float
    share: float
    head: Head | None = None
    head_contribution: float | None = None


@dataclass(frozen=True, slots=True)
class TracePath:
    """A way from a token to the output: indices of nodes, the token first, and what of the output's value goes it."""

    nodes: tuple[int, ...]
    contribution: float


@dataclass(frozen=True, slots=True)
class TraceCoverage:
    """How much of a prediction its graph holds; shares are of 1.

    Of `neuron_positions` there are, `screened` passed a heuristic and `measured` were zeroed in reruns. `output_edges`
    is the share of the output's value that its incoming edges in the graph carry, `output_paths` what paths in the
    graph carry to it from tokens and biases, `edges` the share of all incoming edges' magnitudes that the graph has.
    """

    neuron_positions: int
    screened: int
    measured: int
    output_edges: float
    output_paths: float
    edges: float


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The graph of one prediction, or of several together: nodes, edges, and what they leave out."""

    positions: tuple[int, ...]
    targets: tuple[TokenPrediction, ...]
    contrasts: tuple[TokenPrediction, ...]
    output: float
    """The output's value in the frozen linear model."""
    log_odds: float
    """The real log odds, or logit difference with a contrast, summed over the explained positions."""
    nodes: tuple[TraceNode, ...]
    """Output first, then neurons by the magnitude of their effect, then tokens and biases."""
    edges: tuple[TraceEdge, ...]
    """By target, and then by magnitude."""
    coverage: TraceCoverage

    def paths(self, count: int = 10) -> tuple[TracePath, ...]:
        """The paths from a token to the output that carry most, by magnitude.

        A path carries the output's value times the product over its edges of the edge's contribution divided by its
        target's activation. In a graph that leaves nothing out, the paths from tokens and biases sum to that value.
        """
        incoming: dict[int, list[TraceEdge]] = defaultdict(list)
        for edge in self.edges:
            incoming[edge.target].append(edge)
        order = TopologicalSorter({target: [edge.source for edge in edges] for target, edges in incoming.items()})
        best: dict[int, list[tuple[float, tuple[int, ...]]]] = {}
        for index in order.static_order():
            node = self.nodes[index]
            found = [
                (carried * edge.contribution / node.activation, (*path, index))
                for edge in (incoming[index] if node.activation else ())
                for carried, path in best[edge.source]
            ]
            found += [(1.0, (index,))] if node.kind is TraceNodeKind.TOKEN else []
            best[index] = nlargest(count, found, key=lambda path: abs(path[0]))
        return tuple(
            TracePath(path, carried * node.activation)
            for index, node in enumerate(self.nodes)
            if node.kind is TraceNodeKind.OUTPUT
            for carried, path in best.get(index, ())
        )
