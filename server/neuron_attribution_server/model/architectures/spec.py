"""What must be known of an architecture to get inside it: module paths, layouts of fused projections, norms, scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class NormKind(Enum):
    """How a norm treats its input: LayerNorm subtracts the mean, RMSNorm does not."""

    LAYER = "layer"
    RMS = "rms"


class Layout(Enum):
    """Where rows lie in a projection that computes several things at once."""

    WHOLE = "whole"
    FIRST_HALF = "first half"
    SECOND_HALF = "second half"
    QUERY_KEY_VALUE = "queries, keys, values"
    PER_HEAD = "query, key, value of each head"
    PER_GROUP = "queries, key, value of each key/value head"
    FOUR_BLOCKS = "queries, values, keys of each quarter of the heads"
    LATENT = "key without position, value of each head"


@dataclass(frozen=True, slots=True)
class Rows:
    """Output rows of a projection."""

    module: str
    layout: Layout = Layout.WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A dense feed-forward network: neurons of `up` (and `gate`), activated, written by `output`."""

    output: str
    up: Rows
    gate: Rows | None = None
    activation: str
    weight: str | None = None
    """A projection to one number, whose sigmoid weighs everything this network writes."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What is different where the configuration's `attribute` has `value`."""

    attribute: str
    value: object
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureSpec:
    """One architecture. Paths below `layers` are relative to a layer; a path that is None says there is no such module.

    The published method needs, per layer: what attention and the FFN write to the residual stream, the inputs of both
    output projections (their neurons' coefficients), the value and FFN input projections (the neurons' keys), and the
    norms the keys read through.
    """

    family: str
    """`model_type` of the transformers configuration."""
    layers: str
    final_norm: str
    norm: NormKind
    norm_offset: float = 0.0
    """Added to the weight of every norm."""
    norm_epsilon: float | None = None
    """Where the norm modules do not say it."""

    attention_norm: str | None
    attention_output: str
    attention_write: str | None = None
    """The norm between attention's output projection and the residual stream."""
    attention_weights: str | None = None
    """The attention module, where it does not use transformers' attention interface but returns its weights second."""
    value: Rows
    value_latent: tuple[str, str] | None = None
    """The projection and the norm before the value projection, where values are made from a compressed state."""
    value_else: Rows | None = None
    """The value projection of layers that have none there."""
    value_norm: str | None = None
    """The norm of each value vector, where there is one."""
    value_sharing: str | None = None
    """The configuration's list of layers' types, where a layer may have no values of its own.

    It mixes those of the last layer of its type that has.
    """
    value_clip: str | None = None
    """The configuration's bound of value vectors."""

    ffn_norm: str | None
    ffn: FeedForward
    """The feed-forward network; in layers that have experts, the one beside them is `shared_ffn`."""
    ffn_write: str | None = None
    """The norm between the FFN and the residual stream."""
    ffn_also_writes: str | None = None
    """A module of a layer whose output is added after the FFN's: it counts with it, but no neuron writes it."""
    experts: str | None = None
    """The routed experts of the layers that have them."""
    experts_router: str | None = None
    """What weighs them before they read, where that is so: it returns all weights first, [tokens, experts]."""
    shared_ffn: FeedForward | None = None
    experts_norm: str | None = None
    """The norm before the experts, where it is another than that before the FFN."""
    part_writes: tuple[str, str] | None = None
    """The norms that what the shared network and what the experts give pass through, before they are added up."""
    expert_outputs: tuple[str, ...] = ()
    """The modules whose outputs add up to the FFN's, in layers with experts."""

    parallel: bool = False
    """Whether the FFN reads the layer's input, as attention does, and not what attention adds to it."""
    adds_in_place: bool = False
    """Whether what a module returned is changed afterwards."""
    residual_multiplier: str | None = None
    """The configuration's factor of everything that is written to the residual stream."""
    stream_scalar: str | None = None
    """A layer's number that the whole residual stream is multiplied by at its end, what the layer wrote included."""
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    variants: tuple[Variant, ...] = field(default=())

    @property
    def uses_attention_interface(self) -> bool:
        """Whether the model's attention can be recorded through transformers' attention interface."""
        return self.attention_weights is None
