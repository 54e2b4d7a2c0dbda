"""What can be asked, as frozen dataclasses. The defaults are the service's defaults."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import Enum

from neuron_attribution.conversations.messages import Conversation, Prompt
from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import Head, Neuron, QuerySource


class Part(Enum):
    """A part of an attribution that can be asked for by itself."""

    LAYERS = "layers"
    HEADS = "heads"
    HEAD_POSITIONS = "head-positions"
    FFN_VALUE_NEURONS = "ffn-value-neurons"
    ATTENTION_VALUE_NEURONS = "attention-value-neurons"
    QUERY_LAYERS = "query-layers"
    QUERY_FFN_NEURONS = "query-ffn-neurons"
    ATTENTION_PATTERNS = "attention-patterns"
    """Large, and so not among all parts: given where it is named."""


class Direction(Enum):
    """Which end of a ranking is returned."""

    INCREASE = "increase"
    DECREASE = "decrease"
    BOTH = "both"


class Aggregate(Enum):
    """How the explained tokens of a request are taken together."""

    SUM = "sum"
    """Their log probabilities added: the log probability of the whole answer."""
    MEAN = "mean"
    """The same over the number of tokens; of two answers, each over its own."""


class ScoringMethod(Enum):
    """The eight static scores of the paper's Table 2, a to h. m: coefficient, v: subvalue, w: target."""

    LOG_PROBABILITY_INCREASE = "log-probability-increase"
    """(a) log p(w | base + m v) - log p(w | base)"""
    LOG_PROBABILITY = "log-probability"
    """(b) log p(w | m v)"""
    PROBABILITY_INCREASE = "probability-increase"
    """(c) p(w | base + m v) - p(w | base)"""
    NORM = "norm"
    """(d) |v|"""
    COEFFICIENT = "coefficient"
    """(e) |m|"""
    RECIPROCAL_RANK = "reciprocal-rank"
    """(f) 1 / rank of w in v's projection"""
    COEFFICIENT_NORM = "coefficient-norm"
    """(g) |m| |v|"""
    COEFFICIENT_RECIPROCAL_RANK = "coefficient-reciprocal-rank"
    """(h) |m| / rank of w in v's projection"""


class Subkey(Enum):
    """Which vector of an FFN neuron is its key."""

    UP = "up"
    """The neuron's row of the up projection (the only one of an ungated FFN)."""
    GATE = "gate"
    """The neuron's row of the gate projection."""
    SUBVALUE = "subvalue"
    """The neuron's subvalue, as one published notebook does; it contradicts the paper. Query layers only."""


class Side(Enum):
    """Which vector of a neuron is projected into the vocabulary."""

    SUBVALUE = "subvalue"
    SUBKEY = "subkey"


class LayerPartKind(Enum):
    """Which part of a layer is meant."""

    ATTENTION = "attention"
    FFN = "ffn"


@dataclass(frozen=True, slots=True)
class LayerPart:
    """The attention or the FFN of layer `layer`; the kind is also accepted by its value ("ffn")."""

    layer: int
    kind: LayerPartKind

    def __init__(self, layer: int, kind: LayerPartKind | str) -> None:
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "kind", LayerPartKind(kind))

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind.value}"


@dataclass(frozen=True, slots=True)
class Zero:
    """Set coefficients to zero."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply coefficients by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class SetTo:
    """Set coefficients to `value`."""

    value: float


Operation = Zero | Scale | SetTo


@dataclass(frozen=True, slots=True)
class Intervention:
    """What to do with the coefficients of neurons: single ones, those of whole heads, those of whole layer parts.

    What is named twice is changed once. At every position, or at the explained one only.
    """

    operation: Operation = Zero()
    neurons: tuple[Neuron, ...] = ()
    heads: tuple[Head, ...] = ()
    layers: tuple[LayerPart, ...] = ()
    explained_position_only: bool = False


InterventionSet = tuple[Intervention, ...]
"""Interventions that are made together, in their order."""

ALL_PARTS: frozenset[Part] = frozenset(Part) - {Part.ATTENTION_PATTERNS}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeOptions:
    """How to attribute. Every field is a keyword of `attribute`."""

    parts: frozenset[Part] = ALL_PARTS
    """What to compute."""
    top_k: int = 10
    """Neurons that each ranking returns, at least 1."""
    direction: Direction = Direction.INCREASE
    """Which end of the rankings to return."""
    scoring_method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE
    """How value neurons are scored; layers, heads and positions are always scored by the log probability increase."""
    projection_top_k: int = 10
    """Vocabulary tokens, top and bottom, for each returned neuron; 0 for no projections."""
    query_sources: int = 30
    """The value neurons of each kind, the strongest, that the query parts start from."""
    subkey: Subkey = Subkey.UP
    """The key of FFN value neurons in the query layers."""
    include_final_norm_bias: bool = False
    """Whether the final norm's bias, and the unembedding's, is part of every projection; not so as published."""
    neurons: tuple[Neuron, ...] = ()
    """Neurons to score whatever their rank, attention neurons over all source positions together."""
    exhaustive: bool = False
    """Score every neuron against the whole vocabulary instead of bounding: the oracle, minutes instead of seconds."""
    position_projection_top_k: int = 0
    """Vocabulary tokens for each position of the returned heads; 0 for none."""
    head_top_k: int = 10
    """Heads that are returned with their positions."""
    attention_neurons_over_positions: bool = False
    """Rank attention value neurons over all source positions together, one entry a neuron."""
    interventions: InterventionSet = ()
    """Attribute the pass with these made, in their order; attention neurons cannot be set."""
    query_from: tuple[QuerySource, ...] = ()
    """The value neurons that the query parts start from, in place of the strongest."""
    final_norm_scales: tuple[float, ...] = ()
    """Read each explained token's scores with this scale of the final norm instead of its pass's own: all or none."""
    aggregate: Aggregate | None = None
    """Explain the explained tokens together as well, by the log probability increase."""
    aggregate_only: bool = False
    """Answer with that alone, without an explanation of each token; the query parts are left out then."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions of a prompt, from `start`, at least 1, up to but without `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class AttributeRequest:
    """A request for an attribution. At most one of `target`, `completion`, `generate` and `span` is given."""

    prompt: Prompt
    """Text, token ids used exactly as given, or a conversation."""
    _: KW_ONLY
    target: str | int | None = None
    """The next token to explain: its exact text, leading space and all, or its id. None: the model's own."""
    completion: str | tuple[int, ...] | None = None
    """A continuation, text or token ids, every token of which is explained."""
    generate: int | None = None
    """How many generated tokens to explain."""
    sampling: Sampling | None = None
    """How they are generated. None: the most probable one each time."""
    span: Span | None = None
    """The prompt's own tokens to explain, each by the prediction before it."""
    contrast_completion: str | tuple[int, ...] | None = None
    """Explain the difference of the log probabilities of two answers: that of the completion minus this one's."""
    contrast: str | int | None = None
    """Explain the difference of the log probabilities to this token's: its exact text or its id."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer's special tokens are added to a text. None: its own default."""
    options: AttributeOptions = field(default_factory=AttributeOptions)
    """How to attribute; the client's methods take its fields as keywords of their own."""
    model: str = ""
    """The model's name; empty for the served one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectNeuronRequest:
    """A request for what neurons mean in the vocabulary."""

    neurons: tuple[Neuron, ...]
    """At least one."""
    side: Side = Side.SUBVALUE
    """Whether to project what the neurons write, or what activates them."""
    through: Head | None = None
    """Read FFN neurons through this head: norm, value projection, output projection, then the unembedding."""
    top_k: int = 10
    """Vocabulary tokens, top and bottom, for each neuron."""
    subkey: Subkey = Subkey.UP
    """Which subkey of a gated FFN."""
    model: str = ""
    """The model's name; empty for the served one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneRequest:
    """A request for reruns of a prompt with neurons changed, one rerun for each set."""

    prompt: Prompt
    """Text, token ids used exactly as given, or a conversation; what is watched is the prediction after it."""
    sets: tuple[InterventionSet, ...]
    """At least one."""
    target: str | int | None = None
    """The next token to watch: its exact text or its id. None: the model's own before any intervention."""
    generate: int = 0
    """How many tokens to generate before and after."""
    sampling: Sampling | None = None
    """How they are generated. None: the most probable one each time."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer's special tokens are added to a text. None: its own default."""
    freeze_scale: bool = False
    """Read the predictions after interventions with the final norm's scale of the pass without them."""
    model: str = ""
    """The model's name; empty for the served one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A request for the tokens of a text or a conversation."""

    text: str | Conversation
    """What becomes tokens."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer's special tokens are added. None: its own default."""
    model: str = ""
    """The model's name; empty for the served one."""
