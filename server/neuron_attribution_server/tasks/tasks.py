"""What passes between the front end and the worker: token ids in, explanations out. No torch, no gRPC, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.neurons import AttentionNeuron, Head, Neuron
from neuron_attribution.requests import (
    AttributeOptions,
    Direction,
    Intervention,
    InterventionSet,
    LayerPartKind,
    Part,
    Side,
    Subkey,
)
from neuron_attribution.results import (
    Exactness,
    Explanation,
    InterventionResult,
    Invariant,
    ModelIdentity,
    ModelSizes,
    NeuronProjection,
    PredictionState,
    Timings,
)

RANKED_PARTS = frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS, Part.QUERY_FFN_NEURONS})
"""The parts that are rankings of neurons, whose projections an answer holds."""


def changes_attention(intervention: Intervention) -> bool:
    """Whether it changes attention neurons."""
    return (
        any(isinstance(neuron, AttentionNeuron) for neuron in intervention.neurons)
        or bool(intervention.heads)
        or any(part.kind is LayerPartKind.ATTENTION for part in intervention.layers)
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
    def length(self) -> int:
        """The tokens of its longest sequence."""
        return len(self.token_ids) + self.generate

    @property
    def sequences(self) -> int:
        """The sequences this task puts into the batch."""
        return 1

    @property
    def tokens(self) -> int:
        """The tokens this task puts into the batch."""
        return self.length

    @property
    def rows(self) -> int:
        """The explained tokens this task puts into the batch."""
        return len(self.explained) + self.generate

    @property
    def scored_rows(self) -> int:
        """Those of them whose base states are scored."""
        return self.rows

    @property
    def detailed_heads(self) -> int:
        """The heads whose positions are scored at each explained token, were there as many."""
        if Part.HEAD_POSITIONS not in self.options.parts:
            return 0
        return self.options.head_top_k * (2 if self.options.direction is Direction.BOTH else 1)

    def projected_tokens(self, heads: int) -> int:
        """The vocabulary tokens in its answer, at most, of a model of so many heads."""
        options, ends = self.options, 2 if self.options.direction is Direction.BOTH else 1
        ranked = ends * len(RANKED_PARTS & options.parts) * options.top_k + len(options.neurons)
        positions = 3 * min(self.detailed_heads, ends * heads) * min(options.top_k, self.length)
        per_row = ranked * options.projection_top_k + positions * options.position_projection_top_k
        return 2 * self.rows * per_row

    @property
    def changed_heads(self) -> bool:
        """Whether value vectors are changed, which each head then has its own of."""
        return any(map(changes_attention, self.options.interventions))


def generated_at_once(length: int) -> int:
    """How many sequences of a task generate together: by their length alone, so that their number changes nothing."""
    return 16 if 16 * length <= 4096 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneTask:
    """Reruns of one prompt with neurons changed, each beside the others; `target` None means the model's own token."""

    token_ids: tuple[int, ...]
    sets: tuple[InterventionSet, ...]
    target: int | None = None
    generate: int = 0

    @property
    def length(self) -> int:
        """The tokens of each of its sequences."""
        return len(self.token_ids) + self.generate

    @property
    def sequences(self) -> int:
        """The plain sequence and one for each set."""
        return 1 + len(self.sets)

    @property
    def tokens(self) -> int:
        """The tokens of all its sequences."""
        return self.length * self.sequences

    @property
    def rows(self) -> int:
        """The last position of each sequence."""
        return self.sequences

    @property
    def scored_rows(self) -> int:
        """Only predictions are read."""
        return 0

    @property
    def detailed_heads(self) -> int:
        """Nothing is explained."""
        return 0

    def projected_tokens(self, _heads: int) -> int:
        """Nothing is projected."""
        return 0

    @property
    def generated_in_turn(self) -> int:
        """The tokens of the sets that are generated one after another, those of sets that generate together once."""
        return self.generate * ceil(len(self.sets) / generated_at_once(self.length))

    @property
    def generating_tokens(self) -> int:
        """The tokens that are in memory at once while it generates."""
        return self.length * generated_at_once(self.length) if self.generate else 0


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
    def length(self) -> int:
        """As many as there are tokens."""
        return 1

    @property
    def sequences(self) -> int:
        """Counted as one."""
        return 1

    @property
    def rows(self) -> int:
        """Nothing is explained."""
        return 0

    @property
    def scored_rows(self) -> int:
        """Nothing is explained."""
        return 0

    @property
    def detailed_heads(self) -> int:
        """Nothing is explained."""
        return 0

    def projected_tokens(self, _heads: int) -> int:
        """The vocabulary tokens in its answer."""
        return 2 * len(self.neurons) * self.top_k


Task = AttributeTask | InterveneTask | ProjectTask


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


Outcome = AttributeOutcome | InterveneOutcome | ProjectOutcome | NeuronAttributionError
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
class PackedProjections:
    """Projections as they leave the worker: a serialized ProjectNeuronResponse."""

    response: bytes


Answer = PackedAttribution | InterveneOutcome | PackedProjections | NeuronAttributionError
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
    per_changed_token: int = 0
    """Of each padded token of an attribution with heads intervened in: changed value vectors of every head."""
    rows_at_once: int = 1
    per_explained: int = 0
    """Of each explained token: the coefficients of every neuron, and their query scores."""
    per_projected_token: int = 0
    """Of each vocabulary token that an answer may name."""
    heads: int = 2**31
    """Those that the model has: no more are detailed, whatever is asked for."""

    def batch(self, tasks: Sequence[Task]) -> int:
        """The bytes that a batch of tasks takes."""
        longest = max(task.length for task in tasks)
        rows = sum(task.rows for task in tasks)
        changed = sum(isinstance(task, AttributeTask) and task.changed_heads for task in tasks)
        generating = max((task.generating_tokens for task in tasks if isinstance(task, InterveneTask)), default=0)
        return (
            self.fixed
            + self.per_token * max(longest * sum(task.sequences for task in tasks), generating)
            + self.per_changed_token * longest * changed
            + self.per_row * min(sum(task.scored_rows for task in tasks), self.rows_at_once)
            + self.per_row_token * longest * rows
            + self.per_head_position * longest * sum(task.rows * min(task.detailed_heads, self.heads) for task in tasks)
            + self.per_explained * sum(task.scored_rows for task in tasks)
            + self.per_projected_token * sum(task.projected_tokens(self.heads) for task in tasks)
        )


@dataclass(frozen=True, slots=True)
class WorkPrices:
    """Seconds of a worker's time that each kind of work takes, by its name; without any, nothing is predicted."""

    seconds: Mapping[str, float] = field(default_factory=dict)


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
    work: WorkPrices = WorkPrices()


class Engine(Protocol):
    """What a worker runs. Calls never overlap."""

    @property
    def facts(self) -> ModelFacts:
        """What is loaded."""
        ...

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch; outcomes in the order of the tasks, a failed task's error in its place."""
        ...
