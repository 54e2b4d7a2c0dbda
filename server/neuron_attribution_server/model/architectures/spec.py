"""What must be known of an architecture to get inside it: module paths, layouts of fused projections, norms, scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from neuron_attribution.results import Mixer
from torch import Tensor


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
    QUERY_GATE = "query, gate of each head"


@dataclass(frozen=True, slots=True)
class Rows:
    """Output rows of a projection."""

    module: str
    layout: Layout = Layout.WHOLE


@dataclass(frozen=True, slots=True)
class Gate:
    """What multiplies the mixed heads: rows of a projection of what attention reads, activated.

    There is a row for each dimension of each head, or one for each head.
    """

    rows: Rows
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A dense feed-forward network: neurons of `up` (and `gate`), activated, written by `output`.

    The `activation` is a module that activates the gate, or the up row where there is no gate, unless `join` makes
    coefficients of that module, the gate and the up row.
    """

    output: str
    up: Rows
    gate: Rows | None = None
    activation: str | None
    """The module; None where the model applies SiLU by itself."""
    join: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    norm: str | None = None
    """The norm of the neurons themselves, before the output projection."""
    weight: str | None = None
    """A projection to one number, whose sigmoid weighs everything this network writes."""
    gate_multiplier: str | None = None
    """The factor of what the gate computes, before the activation, as an attribute of the layer."""
    multiplier: str | None = None
    """The factor of everything this network writes, as an attribute of the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """What mixes positions without attention weights, in the layers that have its output projection.

    In a model with such layers, any layer may lack attention, and any may lack the feed-forward network.
    """

    mixer: Mixer
    output: str
    """The projection whose output, times the multiplier, it adds to the residual stream."""
    multiplier: str | None = None
    """The factor of everything it writes, as an attribute of the layer."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What else is different in layers that have it."""
    kept: tuple[str, ...] = ()
    """Where modules of the layer keep its states between passes, which other models give to the cache of their pass."""


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
    value_multiplier: str | None = None
    """The factor of value vectors: an attribute of the configuration or of a module of each layer."""
    attention_input_multiplier: str | None = None
    """The factor of what attention reads, after its norm, as an attribute of the layer."""
    attention_multiplier: str | None = None
    """The factor of everything attention writes, as an attribute of the layer."""
    recurrence: Recurrence | None = None
    attention_gate: Gate | None = None
    """What multiplies the mixed heads before the output projection."""
    mixed_norm: str | None = None
    """The norm of the mixed heads, all together, before the output projection."""

    ffn_norm: str | None
    ffn: FeedForward
    """The feed-forward network; in layers that have experts, the one beside them is `shared_ffn`."""
    ffn_write: str | None = None
    """The norm between the FFN and the residual stream."""
    ffn_also_writes: str | None = None
    """A module of a layer whose output is added after the FFN's: it counts with it, but no neuron writes it."""
    experts: str | None = None
    """The routed experts of the layers that have them."""
    expert_multiplier: str | None = None
    """The factor of what the routed experts write together, an attribute as `value_multiplier` is."""
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
    """The factor of everything that is written to the residual stream, an attribute as `value_multiplier` is."""
    stream_scalar: str | None = None
    """A layer's number that the whole residual stream is multiplied by at its end, what the layer wrote included."""
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_cap: str = "final_logit_softcapping"
    """The configuration's c of a soft-cap c tanh(logits / c), where it has one."""
    variants: tuple[Variant, ...] = field(default=())

    @property
    def uses_attention_interface(self) -> bool:
        """Whether the model's attention can be recorded through transformers' attention interface."""
        return self.attention_weights is None
