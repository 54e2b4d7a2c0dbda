"""A layer's attention with its weights frozen, and how value vectors are made with every scale frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.layers.value_reading import Latent, ValueReading, clipped
from neuron_attribution_server.model.architectures.projections import HeadSizes, weight_of
from neuron_attribution_server.model.attribution.subvalues import FrozenWrite
from neuron_attribution_server.model.tracing.frozen.reads import FrozenRead


@dataclass(frozen=True, slots=True, eq=False)
class FrozenValues:
    """Value vectors at T positions as linear functions of the residual stream, all key/value heads together."""

    read: FrozenRead
    reading: ValueReading
    factors: Tensor
    """What the projection's numbers are multiplied by, [T, K * D]: a factor, a bound, a norm over its scale."""
    latent_by: Tensor | None
    """One over the scale of the compressed state's norm, [T], where there is such a thing."""
    constants: Tensor
    """Value vectors of nothing, [T, K * D]."""

    @classmethod
    def of(cls, layer: LayerView, inputs: Tensor) -> FrozenValues:
        """Those that a layer makes of its input, [T, d] as it was recorded."""
        base, reading = layer.attention_base(inputs), layer.value_reading
        read = FrozenRead.of(layer.attention_norm, base, layer.remaining)
        normed, latent_by = layer.attention_norm.normed(base), None
        nothing = read.constant(normed[0]).expand_as(normed)
        if reading.latent is not None:
            compressed = reading.latent.compressed(normed)
            latent_by = 1 / reading.latent.norm.scale(compressed)
            normed, nothing = (_expanded(reading.latent, each, latent_by) for each in (normed, nothing))
        projected = reading.projection(normed)
        bounded = reading.multiplier * clipped(projected, reading.clip)
        factors = torch.where(projected == 0, reading.multiplier, bounded / projected)
        if reading.norm is not None:
            scales = reading.norm.scale(bounded.unflatten(-1, (-1, reading.sizes.head_size)))
            by = reading.norm.weight / scales[..., None]
            factors = factors * by.expand(*scales.shape, reading.sizes.head_size).flatten(-2)
        return cls(read, reading, factors, latent_by, reading.projection(nothing) * factors)

    def linear(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """What vectors [n, d] of the residual stream at positions [n] add to the values there, [n, K * D]."""
        read = self.read.apply(vectors, positions)
        if self.reading.latent is not None and self.latent_by is not None:
            latent = self.reading.latent
            read = latent.norm.fold(latent.product(read)) * self.latent_by[positions, None]
        return read @ self.reading.projection.weight.float().T * self.factors[positions]

    def transpose(self, gradients: Tensor) -> Tensor:
        """Gradients of the values, [B, T, K * D], as gradients of the residual stream, [B, T, d]."""
        found = (gradients * self.factors) @ self.reading.projection.weight.float()
        if self.reading.latent is not None and self.latent_by is not None:
            latent = self.reading.latent
            normed = latent.norm.centre(latent.norm.weight * found) * self.latent_by[:, None]
            found = latent.transposed_product(normed)
        return self.read.transpose(found)


@dataclass(frozen=True, slots=True, eq=False)
class FrozenAttention:
    """What attention makes of value vectors: H heads of D numbers, T positions."""

    sizes: HeadSizes
    weights: Tensor
    """[H, to T, from T]"""
    gates: Tensor | None
    """What multiplies the mixed heads, [T, H, D], or None."""
    rows: Callable[[], Tensor]
    """W_O's rows, [H * D, d] in float32."""
    write: FrozenWrite | None
    over: Tensor | None
    """The scale of the norm behind it, [T]."""
    constant: Tensor | None
    """What is written beside the heads, [d] or [T, d]."""
    values: int
    """The layer that makes the values."""

    @classmethod
    def of(cls, layer: LayerView, weights: Tensor, gates: Tensor | None, scales: Tensor | None, values: int) -> Self:
        """Of weights [to T, H, from T], gates [T, H * the common head size], and a norm's scales [T]."""
        sizes = layer.sizes
        if gates is not None:
            gates = gates.unflatten(-1, (sizes.heads, -1))[..., : sizes.head_size]
        over = None if layer.attention_write.norm is None else scales

        def rows() -> Tensor:
            return weight_of(layer.attention_output).T.float()

        return cls(
            sizes,
            weights.transpose(0, 1),
            gates,
            rows,
            layer.attention_write.frozen,
            over,
            layer.attention_write.constant(layer.attention_bias, over),
            values,
        )

    def head_gradients(self, written: Tensor, positions: Tensor | None = None) -> Tensor:
        """Gradients of what heads mix, [..., T, H, D], from those of the residual stream, [..., T, d].

        Or at positions [n], [n, H, D] from [n, d].
        """
        where = slice(None) if positions is None else positions
        if self.write is not None:
            written = self.write.transpose(written)
        if self.over is not None:
            written = written / self.over[where, None]
        found: Tensor = (written @ self.rows().T).unflatten(-1, (self.sizes.heads, self.sizes.head_size))
        return found if self.gates is None else found * self.gates[where]

    def value_gradients(self, written: Tensor) -> Tensor:
        """Gradients of value vectors, [B, T, K * D], from those of the residual stream, [B, T, d]."""
        heads = self.head_gradients(written)
        batch, length = heads.shape[:2]
        by_head = heads.permute(2, 1, 0, 3).reshape(self.sizes.heads, length, -1)
        mixed = (self.weights.transpose(1, 2) @ by_head).unflatten(-1, (batch, -1))
        grouped: Tensor = mixed.unflatten(0, (self.sizes.key_value_heads, -1)).sum(1)
        return grouped.permute(2, 1, 0, 3).flatten(2)


def _expanded(latent: Latent, normed: Tensor, by: Tensor) -> Tensor:
    """What values are made from, of what attention reads, [T, d]."""
    found = latent.norm.fold(latent.compressed(normed)) * by[:, None]
    return found if latent.norm.bias is None else found + latent.norm.bias
