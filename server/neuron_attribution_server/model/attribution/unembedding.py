"""Residual-stream vectors read as vocabulary logits, with the final norm's scale frozen (paper section 3, bs-values).

    bs(v) = W_U (gamma * c(v)) / s        c(v) = v - mean(v) for LayerNorm, v for RMSNorm

`fold` applies everything but W_U and s, so that a scaled, folded vector times W_U is its contribution to the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked, checkpoint
from neuron_attribution_server.model.attribution.exact_products import error_factor, product
from neuron_attribution_server.model.attribution.host import is_host

VOCABULARY_BLOCK = 2048
"""Tokens per block on a CPU: a block's logits of a few hundred vectors stay in the processor's cache."""

OTHER_VOCABULARY_BLOCK = 16_384
"""Tokens per block elsewhere: fewer kernels to launch."""

LOGITS_AT_ONCE = 1024
"""Vectors whose logits are computed between two checkpoints, where all of them are kept."""

UNIT_ROUNDOFF = 2.0**-24
LAMBDA = 8.0

SMALLEST_SUM, LARGEST_SUM = 1e-30, 1e30


@dataclass(frozen=True, slots=True, eq=False)
class Unembedding:
    """W_U `weight` [V, d], the final norm's `gamma` [d], its epsilon, whether it centres, and a constant [V].

    The weight is of the model's own type, all else in float32. Where a model multiplies its logits, `gamma` and the
    constant contain the factor.
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

    def logits(self, folded: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits [..., V] of folded, scaled vectors [..., d], without the constant; a thousand at a time.

        They are written into `out` [n, V], where it is given.
        """
        flat = folded.flatten(0, -2)
        if out is None and self.weight.dtype == torch.float32 and len(flat) <= LOGITS_AT_ONCE:
            return folded @ self.weight.T
        logits = flat.new_empty(len(flat), len(self.weight)) if out is None else out
        for start in range(0, len(flat), LOGITS_AT_ONCE):
            some = slice(start, start + LOGITS_AT_ONCE)
            if self.weight.dtype == torch.float32:
                checkpoint()
                torch.mm(flat[some], self.weight.T, out=logits[some])
            else:
                for block in self.blocks():
                    logits[some, block] = self.product(flat[some], block)
        return logits.view(*folded.shape[:-1], -1)

    def product(self, folded: Tensor, block: slice) -> Tensor:
        """Logits [C, tokens] of folded, scaled vectors [C, d] for a block of the vocabulary, without the constant."""
        return product(folded, self.weight[block])

    def rows(self, tokens: Tensor) -> Tensor:
        """W_U of some tokens [...] in float32, [..., d]."""
        return self.weight[tokens].float()

    @property
    def dot_error(self) -> float:
        """How far a dot product of a vector and a row, with norm 1 both, may be off."""
        return dot_product_error(self.weight.shape[1]) * error_factor(self.weight)

    def capped(self, logits: Tensor) -> Tensor:
        """Logits after the soft-cap, where there is one."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def own_logits(self, residuals: Tensor, scale: Tensor | None = None) -> Tensor:
        """The model's own logits [..., V] of final residuals [..., d]; with a `scale` [...], not over their own."""
        logits = self.logits(self.fold(residuals) / (self.scale(residuals) if scale is None else scale)[..., None])
        if self.constant is not None:
            logits += self.constant
        return self.capped(logits)

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return vocabulary_block(self.weight.device)

    def blocks(self) -> Iterator[slice]:
        """The vocabulary in blocks, with a checkpoint before each."""
        size = len(self.weight)
        for start in range(0, size, self.block_size):
            checkpoint()
            yield slice(start, min(start + self.block_size, size))


def dot_product_error(length: int) -> float:
    """How far a dot product of vectors with norm 1 may be off in float32 (see bounds)."""
    return LAMBDA * math.sqrt(length) * UNIT_ROUNDOFF


def vocabulary_block(device: torch.device) -> int:
    """Tokens of a block of the vocabulary."""
    return VOCABULARY_BLOCK if is_host(device) else OTHER_VOCABULARY_BLOCK


def normalised(logits: Tensor) -> Tensor:
    """Log probabilities [..., V], in the place of the logits.

    Not torch.log_softmax: its sum over 49,152 tokens on a CPU was off by 1.3e-5, this one by 1e-6.
    """
    for some in checked(logits.view(-1, logits.shape[-1]).split(LOGITS_AT_ONCE)):
        some.sub_(some.logsumexp(-1, keepdim=True))
    return logits


def is_safe_sum(sums: Tensor) -> Tensor:
    """Whether sums of exponentials [...] are far from float32's ends, so that their logarithms are exact."""
    return (sums > SMALLEST_SUM) & (sums < LARGEST_SUM)
