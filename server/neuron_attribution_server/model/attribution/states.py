"""What scoring reads of the model and of the explained rows, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from neuron_attribution_server.model.attribution.subvalues import Subvalues, stack_layers
from neuron_attribution_server.model.attribution.unembedding import Unembedding


@dataclass(frozen=True, slots=True, eq=False)
class SubvalueNorms:
    """Norms of every neuron's subvalue, as it is and folded."""

    raw: Tensor
    folded: Tensor
    read: Tensor
    """At least the norm of the row that slopes are multiplied with, times what that does to a slope's norm."""


def subvalue_norms(unembedding: Unembedding, subvalues: Sequence[Subvalues]) -> SubvalueNorms:
    """The norms of each layer's subvalues, as [L, n]; n is that of the widest layer."""
    raw = [layer.each(lambda rows: rows.norm(dim=-1)) for layer in subvalues]
    folded = [layer.each(lambda rows: unembedding.fold(rows).norm(dim=-1)) for layer in subvalues]
    read = [layer.read_norms() if layer.is_written else norms for layer, norms in zip(subvalues, raw, strict=True)]
    return SubvalueNorms(stack_layers(raw), stack_layers(folded), stack_layers(read))


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The model's static tensors: L layers, N FFN width, H heads, K key/value heads, D head size, d hidden size."""

    unembedding: Unembedding
    ffn_subvalues: Sequence[Subvalues]
    """W_down rows of each layer, N of them in the widest."""
    attention_subvalues: Sequence[Subvalues]
    """W_O rows of each layer, H * D."""
    ffn_norms: SubvalueNorms
    """[L, N] each."""
    attention_norms: SubvalueNorms
    """[L, H * D] each."""

    @classmethod
    def of(cls, unembedding: Unembedding, ffn: Sequence[Subvalues], attention: Sequence[Subvalues]) -> Weights:
        """Add what can be known once per model."""
        return cls(
            unembedding, ffn, attention, subvalue_norms(unembedding, ffn), subvalue_norms(unembedding, attention)
        )


@dataclass(frozen=True, slots=True, eq=False)
class RowStates:
    """What E explained rows went through, in float32. T is the padded length; attention is zero past each row."""

    inputs: Tensor
    """x_l, then x_L: [E, L + 1, d]."""
    attention_writes: Tensor
    """A_l, [E, L, d]."""
    coefficients: Tensor
    """FFN coefficients, [E, L, N]."""
    head_outputs: Tensor
    """The attention-weighted value vectors, [E, L, H, D]."""
    attention: Tensor
    """Attention weights, [E, L, H, T]."""
    mixing: Tensor
    """What multiplies the value vectors, [E, L, H, T]: the attention weights, over the scale of a norm after it."""
    values: Tensor
    """Value vectors of S sequences, [S, L, K, T, D]; in the model's own dtype. T is 0 where nothing reads sources."""
    sequences: Tensor
    """Which of them each row is in, [E]."""
    gates: Tensor | None
    """What multiplies what each head mixes, [E, L, H, D], or None: the model's gates, and interventions."""
    lengths: Sequence[int]
    """Positions each row may look at."""
    apart: bool
    """Whether row e is in sequence e."""

    @property
    def residuals(self) -> Tensor:
        """r_l = x_l + A_l, the base of the FFN's scores, [E, L, d]."""
        return self.inputs[:, :-1] + self.attention_writes

    def values_of(self, rows: slice, layers: slice, positions: int) -> Tensor:
        """Value vectors of some rows at the first positions, [rows, layers, K, positions, D]."""
        which = rows if self.apart else self.sequences[rows]
        found: Tensor = self.values[which, layers, :, :positions]
        return found
