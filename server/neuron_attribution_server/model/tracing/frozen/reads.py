"""What reads the residual stream through a norm, with the norm's scale frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.norms import NormView


@dataclass(frozen=True, slots=True, eq=False)
class FrozenRead:
    """A norm of the residual stream at T positions: v -> weight * c(v) * by, and a constant."""

    norm: NormView
    by: Tensor
    """One over the scale, [T], and over what the recorded residual stream is multiplied by."""

    @classmethod
    def of(cls, norm: NormView, base: Tensor, remaining: float) -> FrozenRead:
        """The norm of a base [T, d], of a layer whose recorded states are `remaining` times its own."""
        return cls(norm, 1 / (norm.scale(base) * remaining))

    def apply(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """What vectors [n, d] at positions [n] become, without the constant."""
        return self.norm.fold(vectors) * self.by[positions, None]

    def transpose(self, gradients: Tensor, positions: Tensor | None = None) -> Tensor:
        """Gradients of what is read, [..., T, d], or [n, d] at positions [n], as gradients of the residual stream."""
        by = self.by if positions is None else self.by[positions]
        return self.norm.centre(self.norm.weight * gradients) * by[..., None]

    def constant(self, like: Tensor) -> Tensor:
        """What is read of nothing, [d]: the norm's bias."""
        return torch.zeros_like(like) if self.norm.bias is None else self.norm.bias
