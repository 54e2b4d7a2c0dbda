"""Residual-stream vectors read as vocabulary logits, with the final norm's scale frozen (paper section 3, bs-values).

    bs(v) = W_U (gamma * c(v)) / s        c(v) = v - mean(v) for LayerNorm, v for RMSNorm

`fold` applies everything but W_U and s, so that a scaled, folded vector times W_U is its contribution to the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY_BLOCK = 2048
"""Tokens per block: a block's logits of a few hundred vectors stay in the processor's cache."""

SMALLEST_SUM, LARGEST_SUM = 1e-30, 1e30


@dataclass(frozen=True, slots=True, eq=False)
class Unembedding:
    """W_U `weight` [V, d], the final norm's `gamma` [d], its epsilon, whether it centres, and a constant [V].

    Where a model multiplies its logits, `gamma` and the constant contain the factor.
    """

    weight: Tensor
    gamma: Tensor
    epsilon: float
    centred: bool
    constant: Tensor | None
    """W_U beta + the unembedding's bias: the final norm's bias seen from the vocabulary. None where there is none."""
    largest_norm: float
    """The largest norm of a row of `weight`."""
    cap: float | None = None
    """The c of the soft-cap c tanh(logits / c) after everything else, or None."""

    def centre(self, vectors: Tensor) -> Tensor:
        """c(v) of vectors [..., d]."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def scale(self, residuals: Tensor) -> Tensor:
        """The frozen scale s [...] of final residuals [..., d]."""
        return (self.centre(residuals).square().mean(-1) + self.epsilon).sqrt()

    def fold(self, vectors: Tensor) -> Tensor:
        """gamma * c(v) of vectors [..., d]."""
        return self.gamma * self.centre(vectors)

    def fold_gradient(self, gradients: Tensor) -> Tensor:
        """The transpose of `fold`: c(gamma * g), so that <fold(v), g> = <v, fold_gradient(g)>."""
        return self.centre(self.gamma * gradients)

    def logits(self, folded: Tensor) -> Tensor:
        """Logits [..., V] of folded, scaled vectors [..., d], without the constant."""
        return folded @ self.weight.T

    def capped(self, logits: Tensor) -> Tensor:
        """Logits after the soft-cap, where there is one."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def own_logits(self, residuals: Tensor) -> Tensor:
        """The model's own logits [..., V] of final residuals [..., d]."""
        logits = self.logits(self.fold(residuals) / self.scale(residuals)[..., None])
        if self.constant is not None:
            logits += self.constant
        return self.capped(logits)

    def blocks(self) -> Iterator[slice]:
        """The vocabulary in blocks."""
        size = len(self.weight)
        for start in range(0, size, VOCABULARY_BLOCK):
            yield slice(start, min(start + VOCABULARY_BLOCK, size))


def normalised(logits: Tensor) -> Tensor:
    """Log probabilities [..., V], in the place of the logits.

    Not torch.log_softmax: its sum over 49,152 tokens on a CPU was off by 1.3e-5, this one by 1e-6.
    """
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def is_safe_sum(sums: Tensor) -> Tensor:
    """Whether sums of exponentials [...] are far from float32's ends, so that their logarithms are exact."""
    return (sums > SMALLEST_SUM) & (sums < LARGEST_SUM)
