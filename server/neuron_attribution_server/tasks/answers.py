"""What a task is answered with: outcomes in the model's process, and what of them leaves it."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.generation import Generation
from neuron_attribution.results import (
    AggregateExplanation,
    Explanation,
    InterventionResult,
    NeuronProjection,
    PredictionState,
    Timings,
)
from neuron_attribution.traces import Graph


@dataclass(frozen=True, slots=True, eq=False)
class AttributeOutcome:
    """An attribution and the batch it was part of; times in seconds."""

    token_ids: tuple[int, ...]
    explanations: tuple[Explanation, ...]
    forward: float
    scoring: float
    batch_requests: int
    batch_tokens: int
    started: float = 0.0
    """When the forward pass began, in seconds since 1970."""
    bound: float = 0.0
    """The part of `scoring` in which value neurons were bounded."""
    exact: float = 0.0
    """The part of `scoring` in which value neurons were scored exactly."""
    generation: Generation | None = None
    """How the generation ended, of a task that generates."""
    aggregate: AggregateExplanation | None = None
    """What the explained tokens do together, where that was asked for."""


@dataclass(frozen=True, slots=True)
class ProjectOutcome:
    """Projections in the order of the task's neurons."""

    projections: tuple[NeuronProjection, ...]


@dataclass(frozen=True, slots=True, eq=False)
class InterveneOutcome:
    """What the interventions did, and the batch they were part of; times in seconds."""

    before: PredictionState
    results: tuple[InterventionResult, ...]
    forward: float
    scoring: float
    batch_requests: int
    batch_tokens: int
    started: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class TraceOutcome:
    """A prediction's graph, and the batch it was part of; times in seconds."""

    token_ids: tuple[int, ...]
    graph: Graph
    forward: float
    """The pass that is traced."""
    scoring: float
    """Everything behind it: sweeps, reruns that measure effects, edges, projections."""
    batch_requests: int
    batch_tokens: int
    started: float = 0.0


Outcome = AttributeOutcome | InterveneOutcome | ProjectOutcome | TraceOutcome | NeuronAttributionError
"""What the engine gives for one task."""


@dataclass(frozen=True, slots=True)
class PackedAttribution:
    """An attribution as it leaves the worker, which knows no queue and no tokenization.

    `response` is a serialized AttributeResponse that lacks tokens and times: hundreds of small objects cross a process
    boundary several times faster as one message.
    """

    token_ids: tuple[int, ...]
    response: bytes
    timings: Timings


@dataclass(frozen=True, slots=True)
class PackedTrace:
    """A prediction's graph as it leaves the worker: a serialized TraceResponse that lacks tokens and times."""

    token_ids: tuple[int, ...]
    response: bytes
    timings: Timings


@dataclass(frozen=True, slots=True)
class PackedProjections:
    """Projections as they leave the worker: a serialized ProjectNeuronResponse."""

    response: bytes


Answer = PackedAttribution | InterveneOutcome | PackedProjections | PackedTrace | NeuronAttributionError
"""What the worker gives for one task."""
