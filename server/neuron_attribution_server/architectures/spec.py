"""What must be known of an architecture to get inside it: module paths and the layout of fused projections."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class NormKind(Enum):
    """How a norm treats its input: LayerNorm subtracts the mean, RMSNorm does not."""

    LAYER = "layer"
    RMS = "rms"


@dataclass(frozen=True, slots=True)
class Rows:
    """Which output rows of a module's weight to read: block `block` of `blocks` equal ones."""

    module: str
    block: int = 0
    blocks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureSpec:
    """One architecture. Paths below `layers` are relative to a layer.

    The published method needs, per layer: what attention and the FFN write to the residual stream, the inputs of both
    output projections (their neurons' coefficients), the value and FFN input projections (the neurons' keys), and the
    norms the keys read through.
    """

    family: str
    """`model_type` of the transformers configuration."""
    layers: str
    final_norm: str
    norm: NormKind
    attention_norm: str
    attention_output: str
    value: Rows
    ffn_norm: str
    ffn_output: str
    up: Rows
    gate: Rows | None
    activation: str
