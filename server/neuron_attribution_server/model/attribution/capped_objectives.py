"""What is explained where the model soft-caps its logits: g(z) = c tanh(z / c) before the softmax.

The log probability is then no longer concave in what is added, and a difference of two no longer linear. With
|g''| <= K / c, K = 4 / (3 sqrt 3), the second derivative of either along Delta is at most 2 K / c max Delta^2, so that

    value(base + v) - value(base) <= <slope, v> + K / c max_j Delta_j^2,    |Delta_j| <= |W_U[j]| |v'| / s.

The search screens by this. How float32 rounds a capped logit is not part of the margin, so no guarantee is claimed.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.exact_products import weighted_rows
from neuron_attribution_server.model.attribution.objectives import Vectors, each_of
from neuron_attribution_server.model.attribution.unembedding import Unembedding

CAPPED_AT_ONCE = 64
"""Vectors whose logits of the whole vocabulary are held at once."""
CURVATURE = 4 / (3 * math.sqrt(3))


class CappedObjective:
    """f(v) = log_softmax(g(bs(v)))[target], minus that of the contrast where contrasts are given."""

    linear = False

    def __init__(
        self,
        unembedding: Unembedding,
        bases: Tensor,
        scale: Tensor,
        targets: Tensor,
        contrasts: Tensor | None,
        *,
        include_constant: bool,
    ) -> None:
        """Bases [E, S, d] are residual states; scale [E] is frozen; targets and contrasts [E] are token ids."""
        assert unembedding.cap is not None
        self._unembedding = unembedding
        self._scale = scale
        self._targets, self._contrasts = targets, contrasts
        self._states = bases.shape[1]
        self._logits = unembedding.logits(unembedding.fold(bases) / scale[:, None, None]).flatten(0, 1)
        """z [E * S, V], before the cap."""
        if include_constant and unembedding.constant is not None:
            self._logits += unembedding.constant
        self._every = torch.arange(len(self._logits), device=scale.device)
        self._flat_values = torch.cat(
            [self._value(self._logits[part], part) for part in checked(self._every.split(CAPPED_AT_ONCE))]
        )
        self.values = self._flat_values.view(len(targets), self._states)

    @property
    def curvature(self) -> float:
        """K / c."""
        assert self._unembedding.cap is not None
        return CURVATURE / self._unembedding.cap

    @property
    def spread(self) -> bool:
        """Whether the bound from below needs the variance of a distribution: a difference of two tokens has none."""
        return self._contrasts is None

    @cached_property
    def slopes(self) -> Tensor:
        """The gradient of f at each base with respect to the residual stream, [E, S, d]."""
        flat = torch.cat([self._gradients(part) for part in checked(self._every.split(CAPPED_AT_ONCE))])
        gradients = flat.view(len(self._targets), self._states, -1)
        return self._unembedding.fold_gradient(gradients) / self._scale[:, None, None]

    def increases(self, vectors: Vectors, bases: Tensor, *, weak: bool = False) -> Tensor:
        """f(base + v) - f(base), [C], of folded, scaled vectors [C, d] and flat base indices [C]."""
        del weak  # all are scored alike
        parts = checked(zip(vectors.split(CAPPED_AT_ONCE), bases.split(CAPPED_AT_ONCE), strict=True))
        values = [self._value(self._logits[at].add_(self._unembedding.logits(each_of(some))), at) for some, at in parts]
        return torch.cat(values) - self._flat_values[bases]

    def multiples(self, vectors: Tensor, factors: Tensor, base: int) -> Tensor:
        """The same for multiples of each vector at one base, [C, P]: folded vectors [C, d], factors [C, P]."""
        parts = checked(zip(vectors.split(CAPPED_AT_ONCE), factors.split(CAPPED_AT_ONCE), strict=True))
        return torch.cat([self._multiples(some, by, base) for some, by in parts]) - self._flat_values[base]

    def _multiples(self, vectors: Tensor, factors: Tensor, base: int) -> Tensor:
        logits = self._unembedding.logits(vectors)
        at = torch.full((len(vectors),), base, device=vectors.device)
        columns = [
            self._value(self._logits[base] + logits * factor[:, None], at) for factor in checked(factors.unbind(1))
        ]
        return torch.stack(columns, 1)

    def _value(self, logits: Tensor, bases: Tensor) -> Tensor:
        """f from logits [C, V] before the cap."""
        capped, rows = self._unembedding.capped(logits), bases // self._states
        own = capped.gather(1, self._targets[rows, None])[:, 0]
        if self._contrasts is not None:
            return own - capped.gather(1, self._contrasts[rows, None])[:, 0]
        return own - capped.logsumexp(-1)

    def _gradients(self, at: Tensor) -> Tensor:
        """The gradients with respect to a folded, scaled vector at some bases, [C, d]."""
        slopes, weight = self._logit_slopes(at), self._unembedding.weight
        return torch.stack(
            [weighted_rows(slopes[:, block], weight[block]) for block in self._unembedding.blocks()]
        ).sum(0)

    def _logit_slopes(self, at: Tensor) -> Tensor:
        """The gradients with respect to the logits before the cap, [C, V]."""
        capped, rows = self._unembedding.capped(self._logits[at]), at // self._states
        weights = torch.zeros_like(capped) if self._contrasts is not None else -capped.softmax(-1)
        one = weights.new_ones(len(at), 1)
        weights.scatter_add_(1, self._targets[rows, None], one)
        if self._contrasts is not None:
            weights.scatter_add_(1, self._contrasts[rows, None], -one)
        assert self._unembedding.cap is not None
        return weights * (1 - (capped / self._unembedding.cap).square())
