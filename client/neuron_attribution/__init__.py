"""Which neurons of a language model made it say what it said: the client of the neuron attribution service.

from neuron_attribution import Client

with Client("localhost:50051") as client:
    result = client.attribute("The capital of France is", top_k=10)
"""

import os

# gRPC reads this once, when it is imported. Without it every failed TLS handshake is also a line on standard error.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from neuron_attribution import rendering
from neuron_attribution.aio import AsyncClient
from neuron_attribution.client import Client
from neuron_attribution.comparisons import (
    ComparedSide,
    Comparison,
    DifferenceRanking,
    HeadEffects,
    NeuronComparison,
    NeuronDifference,
)
from neuron_attribution.display.drawn import html_tables, rich_tables
from neuron_attribution.display.frames import data_frame
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
from neuron_attribution.report import attribution_page, comparison_page
from neuron_attribution.requests import (
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
    Subkey,
    TokenizeRequest,
    Zero,
)
from neuron_attribution.results import (
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
from neuron_attribution.transport.streams import StreamResult

rendering.summary.register(rendering.Displayed, summary)
rendering.rich_tables.register(rendering.Displayed, rich_tables)
rendering.html_tables.register(rendering.Displayed, html_tables)
rendering.data_frame.register(rendering.Displayed, data_frame)
rendering.page.register(AttributeResult, attribution_page)
rendering.page.register(Comparison, comparison_page)

__all__ = [
    "AbortedError",
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
    "Coverage",
    "DeadlineExceededError",
    "DifferenceRanking",
    "Direction",
    "Exactness",
    "Explanation",
    "FailedPreconditionError",
    "FfnNeuron",
    "FieldViolation",
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
    "Scale",
    "ScoringMethod",
    "SetTo",
    "Side",
    "StreamResult",
    "Subkey",
    "Timings",
    "Token",
    "TokenPrediction",
    "TokenizeRequest",
    "TokenizeResult",
    "TokenizedToken",
    "TokenizerFacts",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Zero",
    "parse_head",
    "parse_neuron",
    "parse_query_source",
]
