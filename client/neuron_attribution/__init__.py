"""Which neurons of a language model made it say what it said: the client of the neuron attribution service.

from neuron_attribution import Client

with Client("localhost:50051") as client:
    result = client.attribute("The capital of France is", top_k=10)
"""

import os

# gRPC reads this once, when it is imported. Without it every failed TLS handshake is also a line on standard error.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from neuron_attribution import rendering
from neuron_attribution.clients.aio import AsyncClient
from neuron_attribution.clients.client import Client
from neuron_attribution.comparisons import (
    ComparedSide,
    Comparison,
    DifferenceRanking,
    HeadEffects,
    NeuronComparison,
    NeuronDifference,
)
from neuron_attribution.conversations.messages import Conversation, Message, TokenOrigin
from neuron_attribution.convert.graphs.answers import trace_json
from neuron_attribution.display.drawn import html_tables, rich_tables
from neuron_attribution.display.frames import data_frame, edge_data_frame
from neuron_attribution.display.summaries import summary
from neuron_attribution.errors import (
    AbortedError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NeuronAttributionError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from neuron_attribution.generation import FinishReason, Generation, Sampling
from neuron_attribution.graphs.circuit_tracer import circuit_tracer_json
from neuron_attribution.graphs.networks import network, node_link
from neuron_attribution.neurons import (
    AttentionNeuron,
    FfnNeuron,
    Head,
    Neuron,
    QuerySource,
    parse_head,
    parse_neuron,
    parse_query_source,
)
from neuron_attribution.report import attribution_page, comparison_page, trace_page
from neuron_attribution.requests import (
    Aggregate,
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    InterventionSet,
    LayerPart,
    LayerPartKind,
    Operation,
    Part,
    ProjectNeuronRequest,
    Scale,
    ScoringMethod,
    SetTo,
    Side,
    Span,
    Subkey,
    TokenizeRequest,
    Zero,
)
from neuron_attribution.results import (
    AggregateExplanation,
    AttributeResult,
    ComponentKind,
    Coverage,
    Exactness,
    Explanation,
    HeadPosition,
    HeadScore,
    InterveneResult,
    InterventionResult,
    Invariant,
    LayerParts,
    LayerScores,
    Limits,
    Mixer,
    ModelIdentity,
    ModelInfo,
    ModelSizes,
    NeuronProjection,
    NeuronRanking,
    NeuronScore,
    PredictionState,
    ProjectedRank,
    ProjectedToken,
    Projection,
    ProjectNeuronResult,
    PromotedSide,
    QueryLayer,
    QueryLayers,
    Timings,
    Token,
    TokenizedToken,
    TokenizeResult,
    TokenizerFacts,
    TokenPrediction,
)
from neuron_attribution.traces import (
    Graph,
    Trace,
    TraceCoverage,
    TraceEdge,
    TraceNode,
    TraceNodeKind,
    TraceOptions,
    TracePath,
    TraceRequest,
)
from neuron_attribution.transport.streams import StreamResult

rendering.summary.register(rendering.Displayed, summary)
rendering.rich_tables.register(rendering.Displayed, rich_tables)
rendering.html_tables.register(rendering.Displayed, html_tables)
rendering.data_frame.register(rendering.Displayed, data_frame)
rendering.page.register(AttributeResult, attribution_page)
rendering.page.register(Comparison, comparison_page)
rendering.page.register(Trace, trace_page)
rendering.json_text.register(Trace, trace_json)
rendering.edge_data_frame.register(Trace, edge_data_frame)
rendering.node_link.register(Trace, node_link)
rendering.network.register(Trace, network)
rendering.circuit_tracer_json.register(Trace, circuit_tracer_json)

__all__ = [
    "AbortedError",
    "Aggregate",
    "AggregateExplanation",
    "AsyncClient",
    "AttentionNeuron",
    "AttributeOptions",
    "AttributeRequest",
    "AttributeResult",
    "CancelledError",
    "Client",
    "ComparedSide",
    "Comparison",
    "ComponentKind",
    "Conversation",
    "Coverage",
    "DeadlineExceededError",
    "DifferenceRanking",
    "Direction",
    "Exactness",
    "Explanation",
    "FailedPreconditionError",
    "FfnNeuron",
    "FieldViolation",
    "FinishReason",
    "Generation",
    "Graph",
    "Head",
    "HeadEffects",
    "HeadPosition",
    "HeadScore",
    "InternalError",
    "InterveneRequest",
    "InterveneResult",
    "Intervention",
    "InterventionResult",
    "InterventionSet",
    "InvalidArgumentError",
    "Invariant",
    "LayerPart",
    "LayerPartKind",
    "LayerParts",
    "LayerScores",
    "Limits",
    "Message",
    "Mixer",
    "ModelIdentity",
    "ModelInfo",
    "ModelSizes",
    "Neuron",
    "NeuronAttributionError",
    "NeuronComparison",
    "NeuronDifference",
    "NeuronProjection",
    "NeuronRanking",
    "NeuronScore",
    "NotFoundError",
    "Operation",
    "Part",
    "PermissionDeniedError",
    "PredictionState",
    "ProjectNeuronRequest",
    "ProjectNeuronResult",
    "ProjectedRank",
    "ProjectedToken",
    "Projection",
    "PromotedSide",
    "QueryLayer",
    "QueryLayers",
    "QuerySource",
    "ResourceExhaustedError",
    "Sampling",
    "Scale",
    "ScoringMethod",
    "SetTo",
    "Side",
    "Span",
    "StreamResult",
    "Subkey",
    "Timings",
    "Token",
    "TokenOrigin",
    "TokenPrediction",
    "TokenizeRequest",
    "TokenizeResult",
    "TokenizedToken",
    "TokenizerFacts",
    "Trace",
    "TraceCoverage",
    "TraceEdge",
    "TraceNode",
    "TraceNodeKind",
    "TraceOptions",
    "TracePath",
    "TraceRequest",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Zero",
    "parse_head",
    "parse_neuron",
    "parse_query_source",
]
