"""Graphs of predictions: what is asked and what comes back, as frozen dataclasses.

Edges and relevances are exact in the frozen linear model: attention weights, the scales of all norms and, of every FFN
neuron, the factor beside its subkey stay as they were in the prompt's own pass. Effects are measured by intervention.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.requests import Subkey
from neuron_attribution.results import ModelIdentity, Projection, PromotedSide, Timings, Token, TokenPrediction

DEFAULT_NODES = 100
SCREENED_PER_NODE = 4
"""How many neurons are measured for each that is kept, unless the request says."""
MOST_EDGES = 20
"""Incoming edges that a node keeps at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """What a graph holds."""

    nodes: int = DEFAULT_NODES
    """FFN neurons, each at its position, that are kept: those of the largest effect."""
    edge_share: float = 0.8
    """Each node keeps its largest incoming edges until they are this share of the sum of all their magnitudes."""
    subkey: Subkey = Subkey.UP
    """Which vector of a gated neuron is its key, up or gate; the factor beside it is frozen."""
    measure: bool = True
    """Whether effects are measured, by zeroing each screened neuron at its position."""
    heads: bool = False
    """Whether edges from earlier positions name the head that carries most of them."""
    screened: int | None = None
    """Neurons that pass the screening and are measured; None means SCREENED_PER_NODE for each that is kept."""
    projection_top_k: int = 10
    leave_out_always_on: bool = False


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

    `activation` is a neuron's coefficient and the output's value, 1 for tokens and biases. `effect` is the output's real
    log odds (logit difference, with a contrast) less what they are when the neuron is zeroed at its position, None where
    that was not measured. `gradient` is the real log odds' gradient times the activation, of neurons only. `relevance` is
    the activation times the output's gradient in the frozen linear model. `other` is the sum of the incoming edges that
    the graph leaves out: with those in it, it is the activation.
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
class TraceCoverage:
    """How much of a prediction its graph holds; shares are of 1.

    Of `neuron_positions` there are, `screened` passed a heuristic and `measured` were zeroed in reruns. `output_edges` is
    the share of the output's value that its incoming edges in the graph carry, `output_paths` what paths in the graph
    carry to it from tokens and biases, `edges` the share of all incoming edges' magnitudes that the graph has.
    """

    neuron_positions: int
    screened: int
    measured: int
    output_edges: float
    output_paths: float
    edges: float


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The graph of one prediction, or of several together, as the engine finds it: nodes, edges, what they leave out."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The answer to a trace: a graph with the exact tokens."""

    model: ModelIdentity
    tokens: tuple[Token, ...]
    graph: Graph
    timings: Timings
    origins: tuple[TokenOrigin, ...] = ()
