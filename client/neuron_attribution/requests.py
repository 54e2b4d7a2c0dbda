"""What can be asked, as frozen dataclasses. The defaults are the service's defaults."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import Enum

from neuron_attribution.neurons import Head, Neuron


class Part(Enum):
    """A part of an attribution that can be asked for by itself."""

    LAYERS = "layers"
    HEADS = "heads"
    HEAD_POSITIONS = "head-positions"
    FFN_VALUE_NEURONS = "ffn-value-neurons"
    ATTENTION_VALUE_NEURONS = "attention-value-neurons"
    QUERY_LAYERS = "query-layers"
    QUERY_FFN_NEURONS = "query-ffn-neurons"


class Direction(Enum):
    """Which end of a ranking is returned."""

    INCREASE = "increase"
    DECREASE = "decrease"
    BOTH = "both"


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

ALL_PARTS: frozenset[Part] = frozenset(Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeOptions:
    """How to attribute. Meanings and defaults are those of the AttributeRequest message."""

    parts: frozenset[Part] = ALL_PARTS
    top_k: int = 10
    direction: Direction = Direction.INCREASE
    scoring_method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE
    projection_top_k: int = 10
    query_sources: int = 30
    subkey: Subkey = Subkey.UP
    include_final_norm_bias: bool = False
    neurons: tuple[Neuron, ...] = ()
    exhaustive: bool = False
    position_projection_top_k: int = 0
    head_top_k: int = 10
    attention_neurons_over_positions: bool = False
    interventions: InterventionSet = ()


@dataclass(frozen=True, slots=True)
class AttributeRequest:
    """A request for an attribution.

    `prompt` is text, or token ids used exactly as given. At most one of `target` (a token's exact text or its id),
    `completion` (text or ids) and `generate` (a number of tokens) is given; none means the model's own next token.
    """

    prompt: str | tuple[int, ...]
    _: KW_ONLY
    target: str | int | None = None
    completion: str | tuple[int, ...] | None = None
    generate: int | None = None
    contrast: str | int | None = None
    add_special_tokens: bool | None = None
    options: AttributeOptions = field(default_factory=AttributeOptions)
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectNeuronRequest:
    """A request for what neurons mean in the vocabulary."""

    neurons: tuple[Neuron, ...]
    side: Side = Side.SUBVALUE
    through: Head | None = None
    top_k: int = 10
    subkey: Subkey = Subkey.UP
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneRequest:
    """A request for reruns of a prompt with neurons changed, one rerun for each set.

    `prompt` is text, or token ids used exactly as given; `target` a token's exact text or its id.
    """

    prompt: str | tuple[int, ...]
    sets: tuple[InterventionSet, ...]
    target: str | int | None = None
    generate: int = 0
    add_special_tokens: bool | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A request for the tokens of a text."""

    text: str
    add_special_tokens: bool | None = None
    model: str = ""
