"""What passes between the front end and the worker: token ids in, explanations out. No torch, no gRPC, no protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.neurons import Head, Neuron
from neuron_attribution.requests import AttributeOptions, Direction, Part, Side, Subkey
from neuron_attribution.results import (
    Exactness,
    Explanation,
    Invariant,
    ModelIdentity,
    ModelSizes,
    NeuronProjection,
    Timings,
)


@dataclass(frozen=True, slots=True)
class ExplainedToken:
    """The prediction made at `position`; `target` None means the model's own most probable token there."""

    position: int
    target: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeTask:
    """One attribution. With `generate` > 0 the explained tokens are the generated ones and `explained` is empty."""

    token_ids: tuple[int, ...]
    explained: tuple[ExplainedToken, ...] = ()
    generate: int = 0
    contrast: int | None = None
    options: AttributeOptions = field(default_factory=AttributeOptions)
    reproducible: bool = False
    """Whether each explained token is scored by itself: products of several rows round otherwise than those of one."""

    @property
    def tokens(self) -> int:
        """The tokens this task puts into the batch."""
        return len(self.token_ids) + self.generate

    @property
    def rows(self) -> int:
        """The explained tokens this task puts into the batch."""
        return len(self.explained) + self.generate

    @property
    def detailed_heads(self) -> int:
        """The heads whose positions are scored, in all explanations."""
        return self.rows * self.options.head_top_k * (2 if self.options.direction is Direction.BOTH else 1)

    @property
    def runs_alone(self) -> bool:
        """Whether it takes so long that no other task should wait for it in one batch."""
        return self.options.exhaustive


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectTask:
    """One projection of neurons into the vocabulary."""

    neurons: tuple[Neuron, ...]
    side: Side = Side.SUBVALUE
    through: Head | None = None
    top_k: int = 10
    subkey: Subkey = Subkey.UP

    @property
    def tokens(self) -> int:
        """Projections take no part in the forward pass; they count as one token."""
        return 1

    @property
    def rows(self) -> int:
        """Nothing is explained."""
        return 0

    @property
    def detailed_heads(self) -> int:
        """Nothing is explained."""
        return 0

    @property
    def runs_alone(self) -> bool:
        """A product or two."""
        return False


Task = AttributeTask | ProjectTask


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


@dataclass(frozen=True, slots=True)
class ProjectOutcome:
    """Projections in the order of the task's neurons."""

    projections: tuple[NeuronProjection, ...]


Outcome = AttributeOutcome | ProjectOutcome | NeuronAttributionError
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


Answer = PackedAttribution | ProjectOutcome | NeuronAttributionError
"""What the worker gives for one task."""


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """What a batch takes beside the weights, in bytes, predicted from above; `available` is what batches may take."""

    available: int
    fixed: int = 0
    per_token: int = 0
    """Of each padded token of the batch: the captured states and the forward pass."""
    per_row: int = 0
    """Of each explained token: the base states' log probabilities, up to `rows_at_once` of them."""
    per_row_token: int = 0
    """Of each explained token and each padded position it may look at: attention weights."""
    per_head_position: int = 0
    """Of each padded position of a head that is detailed."""
    rows_at_once: int = 1

    def batch(self, tasks: Sequence[Task]) -> int:
        """The bytes that a batch of tasks takes."""
        longest = max(task.tokens for task in tasks)
        rows = sum(task.rows for task in tasks)
        return (
            self.fixed
            + self.per_token * longest * len(tasks)
            + self.per_row * min(rows, self.rows_at_once)
            + self.per_row_token * longest * rows
            + self.per_head_position * longest * sum(task.detailed_heads for task in tasks)
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the front end knows of the loaded model. `tokenizer` is the tokenizers library's JSON."""

    identity: ModelIdentity
    family: str
    device: str
    sizes: ModelSizes
    maximum_tokens: int
    supported_parts: tuple[Part, ...]
    exactness: Exactness
    invariants: tuple[Invariant, ...]
    tokenizer: str
    memory: MemoryCost


class Engine(Protocol):
    """What a worker runs. Calls never overlap."""

    @property
    def facts(self) -> ModelFacts:
        """What is loaded."""
        ...

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch; outcomes in the order of the tasks, a failed task's error in its place."""
        ...
