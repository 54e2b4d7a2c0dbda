"""How a layer makes its value vectors of what its attention reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from neuron_attribution_server.model.architectures.norms import NormView
from neuron_attribution_server.model.architectures.projections import HeadSizes, Projection, bias_of, weight_of
from neuron_attribution_server.model.attribution.exact_products import products_by_pieces


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """The compressed state that values are made from: rows [r, d] with a bias [r] or None, and its norm."""

    weight: Tensor
    bias: Tensor | None
    norm: NormView

    @classmethod
    def of(cls, projection: nn.Module, norm: NormView) -> Latent:
        """The rows of a projection that its norm reads; others are for something else."""
        rows, bias = len(norm.weight), bias_of(projection)
        return cls(weight_of(projection)[:rows], None if bias is None else bias[:rows], norm)

    def compressed(self, normed: Tensor) -> Tensor:
        """The compressed state before its norm, [..., r], of what attention reads, [..., d]."""
        found = self.product(normed)
        return found if self.bias is None else found + self.bias

    def product(self, vectors: Tensor) -> Tensor:
        """The same without the bias."""
        return products_by_pieces(vectors, self.weight)

    def transposed_product(self, vectors: Tensor) -> Tensor:
        """What vectors [..., r] are as vectors of what attention reads, [..., d]."""
        return products_by_pieces(vectors, self.weight.T)


@dataclass(frozen=True, slots=True, eq=False)
class ValueReading:
    """What stands between what attention reads and the value vectors."""

    projection: Projection
    sizes: HeadSizes
    multiplier: float
    clip: float | None
    latent: Latent | None
    norm: NormView | None
    """The norm of each value vector, where there is one."""

    def vectors(self, normed: Tensor) -> Tensor:
        """The value vectors, [..., key/value heads * head size], from what attention reads, [..., d]."""
        if self.latent is not None:
            normed = self.latent.norm.normed(self.latent.compressed(normed))
        values = self.multiplier * clipped(self.projection(normed), self.clip)
        if self.norm is None:
            return values
        return self.norm.normed(values.unflatten(-1, (-1, self.sizes.head_size))).flatten(-2)


def clipped(values: Tensor, bound: float | None) -> Tensor:
    """Values within a bound, where there is one."""
    return values if bound is None else values.clamp(-bound, bound)
