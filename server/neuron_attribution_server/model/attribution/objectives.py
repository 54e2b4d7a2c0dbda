"""What is explained: the log probability of a target, or its difference to a contrast token's.

An objective knows, for E explained rows and S base states each, its value at every base, the slope there, and the exact
increase that a vector added to a base brings. The log probability is concave and the difference is linear in the added
vector, so in both cases value(base + v) - value(base) <= <slope, v> (method: "first-order bound").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.exact_products import add_product, product, weighted_rows
from neuron_attribution_server.model.attribution.host import is_host, numbers_at_once
from neuron_attribution_server.model.attribution.unembedding import Unembedding, is_safe_sum, normalised

VECTORS_AT_ONCE = 512
OTHER_VECTORS_AT_ONCE = 2048
"""Vectors whose logits of a block of the vocabulary are held at once, on a CPU, in its cache, and elsewhere."""

MULTIPLES_IN_CACHE = 128
"""Multiples whose logits of a block of the vocabulary stay in a processor's cache from one step to the next."""

SMALLEST_REACH = 1e-3
"""Vectors that move no logit by more than this are scored by the slope alone.

Hoeffding's lemma bounds what that leaves out by range(Delta)^2 / 8 <= (2 * 1e-3)^2 / 8 = 5e-7, a tenth of float32's
rounding of a log probability. Most source positions of a long prompt are of this kind.
"""


SHARED = 2
"""Multiples of one vector, on average, from which on one product with the unembedding is better than one for each."""
FEWER_PRODUCTS = 128
"""How many products that must save: the vocabulary is read once more."""


@dataclass(frozen=True, slots=True, eq=False)
class Multiples:
    """Vectors [C, d] of which many are multiples of the same: which of the distinct ones [S, d], times what, [C]."""

    distinct: Tensor
    which: Tensor
    factors: Tensor

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, at: Tensor) -> Multiples:
        return Multiples(self.distinct, self.which[at], self.factors[at])

    @property
    def shape(self) -> tuple[int, int]:
        """(C, d)"""
        return len(self), self.distinct.shape[1]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.distinct.device

    def each(self) -> Tensor:
        """Every one by itself, [C, d]."""
        return self.distinct[self.which] * self.factors[:, None]

    def split(self, most: int) -> Sequence[Multiples]:
        """In order, at most so many together."""
        parts = zip(self.which.split(most), self.factors.split(most), strict=True)
        return [Multiples(self.distinct, *part) for part in parts]

    def compact(self) -> Vectors:
        """The same without vectors that none is of; each by itself where hardly any are of the same.

        A device, which the host would have to wait for, reads a few too many.
        """
        if not is_host(self.device) and len(self) >= SHARED * len(self.distinct):
            return self
        used, which = self.which.unique(return_inverse=True)
        return Multiples(self.distinct[used], which, self.factors) if len(self) >= SHARED * len(used) else self.each()


Vectors = Tensor | Multiples


def is_shared(multiples: int, distinct: int) -> bool:
    """Whether so many multiples of so many vectors are scored as such."""
    return multiples >= SHARED * distinct and multiples - distinct >= FEWER_PRODUCTS


def each_of(vectors: Vectors) -> Tensor:
    """Every vector by itself, [C, d]."""
    return vectors.each() if isinstance(vectors, Multiples) else vectors


def vectors_at_once(device: torch.device) -> int:
    """Vectors whose logits of a block of the vocabulary are held at once."""
    return VECTORS_AT_ONCE if is_host(device) else OTHER_VECTORS_AT_ONCE


class Objective(Protocol):
    """f in the paper's notation. Row r's base state s has the flat index r * S + s."""

    linear: bool

    @property
    def curvature(self) -> float:
        """How far f may bend away from its slope, per square of the largest logit added; 0 where it is concave."""
        ...

    @property
    def spread(self) -> bool:
        """Whether f may fall below its slope by the variance of the logits added."""
        ...

    @property
    def values(self) -> Tensor:
        """f(base), [E, S]."""
        ...

    @property
    def slopes(self) -> Tensor:
        """The gradient of f at each base with respect to the residual stream, [E, S, d]."""
        ...

    def increases(self, vectors: Vectors, bases: Tensor, *, weak: bool = False) -> Tensor:
        """f(base + v) - f(base), [C], of folded, scaled vectors [C, d] and flat base indices [C].

        Where many may be `weak`, moving hardly any logit, it pays to find those, for which the host waits.
        """
        ...

    def multiples(self, vectors: Tensor, factors: Tensor, base: int) -> Tensor:
        """The same for multiples of each vector at one base, [C, P]: folded vectors [C, d], factors [C, P]."""
        ...


def read_bases(unembedding: Unembedding, bases: Tensor, scale: Tensor, *, include_constant: bool) -> Tensor:
    """Residual states [E, S, d] as log probabilities, with a frozen scale [E]: [E, S, V]."""
    logits = unembedding.logits(unembedding.fold(bases) / scale[:, None, None])
    if include_constant and unembedding.constant is not None:
        logits += unembedding.constant
    return normalised(logits)


class LogProbability:
    """f(v) = log_softmax(bs(v))[target]."""

    linear = False
    curvature = 0.0
    spread = True

    def __init__(self, unembedding: Unembedding, read: Tensor, scale: Tensor, targets: Tensor) -> None:
        """Read [E, S, V] is what `read_bases` gave; scale [E] is frozen; targets [E] are token ids."""
        self._unembedding = unembedding
        self._scale = scale
        self._targets = targets
        self._states = read.shape[1]
        self.log_probabilities = read.flatten(0, 1)
        """[E * S, V]"""
        every = targets[:, None].expand(-1, self._states).flatten()
        self.values = self.log_probabilities.gather(1, every[:, None]).view(len(targets), self._states)

    @property
    def slopes(self) -> Tensor:
        """s^-1 c(gamma * (W_U[w] - p^T W_U)) at each base, [E, S, d]."""
        gradients = self._gradients.view(len(self._targets), self._states, -1)
        return self._unembedding.fold_gradient(gradients) / self._scale[:, None, None]

    def increases(self, vectors: Vectors, bases: Tensor, *, weak: bool = False) -> Tensor:
        """Delta_w - log E_p[exp Delta], one pass over the vocabulary per few hundred vectors."""
        on_host = is_host(vectors.device)
        exact = self._increases if on_host else self._steady_increases
        if not (weak or on_host):
            return torch.cat([exact(*some) for some in self._some(vectors, bases)])
        by_slope, reaches = self._by_slope(vectors, bases)
        large = (reaches > SMALLEST_REACH).nonzero().squeeze(1)
        if isinstance(vectors, Multiples):
            large = large[vectors.which[large].argsort(stable=True)]  # those of one vector behind each other
        places = large.split(vectors_at_once(vectors.device))
        for some, place in zip(self._some(vectors[large], bases[large]), places, strict=True):
            by_slope[place] = exact(*some)
        return by_slope

    def _by_slope(self, vectors: Vectors, bases: Tensor) -> tuple[Tensor, Tensor]:
        """What vectors add to the slope, and at most to a logit, [C] each.

        Into memory that is there: results kept beside large passing tensors would keep their room apart.
        """
        step = max(1, numbers_at_once(vectors.device) // vectors.shape[1])
        gradients, found = self._gradients, torch.empty(2, len(bases), device=bases.device)
        parts = checked(zip(vectors.split(step), bases.split(step), *(each.split(step) for each in found), strict=True))
        for some, at, slopes, norms in parts:
            each = each_of(some)
            torch.sum(gradients[at].mul_(each), -1, out=slopes)
            torch.norm(each, dim=-1, out=norms)
        return found[0], found[1].mul_(self._unembedding.largest_norm)

    def _some(self, vectors: Vectors, bases: Tensor) -> Iterator[tuple[Vectors, Tensor]]:
        """Those that are scored together."""
        most = vectors_at_once(vectors.device)
        parts = zip(vectors.split(most), bases.split(most), strict=True)
        return ((some.compact() if isinstance(some, Multiples) else some, at) for some, at in parts)

    @cached_property
    def _gradients(self) -> Tensor:
        """W_U[w] - p^T W_U at each base, the gradient with respect to a folded, scaled vector, [E * S, d]."""
        weight = self._unembedding.weight
        expected = torch.zeros(len(self.log_probabilities), weight.shape[1], device=weight.device)
        for block in self._unembedding.blocks():
            expected += weighted_rows(self.log_probabilities[:, block].exp(), weight[block])
        own = self._unembedding.rows(self._targets)
        gradients: Tensor = (own[:, None] - expected.unflatten(0, (-1, self._states))).flatten(0, 1)
        return gradients

    def multiples(self, vectors: Tensor, factors: Tensor, base: int) -> Tensor:
        """As `increases`, with one matrix product for all multiples of a vector."""
        sums = torch.zeros(factors.shape, device=factors.device)
        for block in self._unembedding.blocks():
            logits = self._unembedding.product(vectors, block)
            start = self.log_probabilities[base, block]
            for column, factor in enumerate(checked(factors.unbind(1))):
                sums[:, column] += torch.addcmul(start, logits, factor[:, None]).exp_().sum(-1)
        own = self._unembedding.rows(self._targets[base // self._states])
        increases = (vectors @ own)[:, None] * factors - sums.log()
        rows, columns = (~is_safe_sum(sums)).nonzero(as_tuple=True)
        extreme = vectors[rows] * factors[rows, columns, None]
        increases[rows, columns] = self._extreme_increases(extreme, torch.full_like(rows, base))
        return increases

    def _increases(self, vectors: Vectors, bases: Tensor) -> Tensor:
        """E_p[exp Delta] is summed without shifting by its largest term, which would cost as much as the product."""
        sums = torch.zeros(len(vectors), device=vectors.device)
        for block in self._unembedding.blocks():
            if isinstance(vectors, Multiples):
                self._add_multiples(sums, vectors, bases, block)
            else:
                sums += self._moved(vectors, bases, block).exp_().sum(-1)
        each = each_of(vectors)
        increases = self._own(each, bases) - sums.log()
        extreme = (~is_safe_sum(sums)).nonzero().squeeze(1)
        increases[extreme] = self._extreme_increases(each[extreme], bases[extreme])
        return increases

    def _add_multiples(self, sums: Tensor, vectors: Multiples, bases: Tensor, block: slice) -> None:
        """Add a block of the vocabulary to E_p[exp Delta], of a few multiples at a time."""
        logits = product(vectors.distinct, self._unembedding.weight[block])
        parts = (each.split(MULTIPLES_IN_CACHE) for each in (sums, vectors.which, vectors.factors, bases))
        for mine, which, factors, at in zip(*parts, strict=True):
            start = self.log_probabilities[:, block].index_select(0, at)
            mine.add_(start.addcmul_(logits.index_select(0, which), factors[:, None]).exp_().sum(-1))

    def _steady_increases(self, vectors: Vectors, bases: Tensor) -> Tensor:
        """The same shifted by the largest term of each block: no sum leaves float32's range, and nobody has to look."""
        sums = [self._moved(vectors, bases, block).logsumexp(-1) for block in self._unembedding.blocks()]
        return self._own(each_of(vectors), bases) - torch.stack(sums).logsumexp(0)

    def _moved(self, vectors: Vectors, bases: Tensor, block: slice) -> Tensor:
        """log p + Delta of a block of the vocabulary, [C, tokens]."""
        start = self.log_probabilities[:, block].index_select(0, bases)
        weight = self._unembedding.weight[block]
        if not isinstance(vectors, Multiples):
            return add_product(start, vectors, weight)
        logits = product(vectors.distinct, weight).index_select(0, vectors.which)
        return start.addcmul_(logits, vectors.factors[:, None])

    def _extreme_increases(self, vectors: Tensor, bases: Tensor) -> Tensor:
        """The same for the rare vectors whose plain sum leaves float32's range, one at a time."""
        increases = self._own(vectors, bases)
        for index, (vector, base) in enumerate(checked(zip(vectors, bases, strict=True))):
            increases[index] -= (self.log_probabilities[base] + self._unembedding.logits(vector[None])[0]).logsumexp(0)
        return increases

    def _own(self, vectors: Tensor, bases: Tensor) -> Tensor:
        """Delta of the target, [C]."""
        return (vectors * self._unembedding.rows(self._targets[bases // self._states])).sum(-1)


class LogProbabilityDifference:
    """f(v) = log p(target) - log p(contrast), linear because the normalisation cancels."""

    linear = True
    curvature = 0.0
    spread = False

    def __init__(
        self,
        unembedding: Unembedding,
        bases: Tensor,
        scale: Tensor,
        targets: Tensor,
        contrasts: Tensor,
        *,
        include_constant: bool,
    ) -> None:
        """Bases [E, S, d] are residual states; scale [E] is frozen; targets and contrasts [E] are token ids."""
        self._states = bases.shape[1]
        self._difference = unembedding.rows(targets) - unembedding.rows(contrasts)
        self._slopes = unembedding.fold_gradient(self._difference) / scale[:, None]
        folded = unembedding.fold(bases) / scale[:, None, None]
        self.values = (folded * self._difference[:, None]).sum(-1)
        if include_constant and unembedding.constant is not None:
            self.values += (unembedding.constant[targets] - unembedding.constant[contrasts])[:, None]

    @property
    def slopes(self) -> Tensor:
        """The same at every base, [E, S, d]."""
        return self._slopes[:, None].expand(-1, self._states, -1)

    def increases(self, vectors: Vectors, bases: Tensor, *, weak: bool = False) -> Tensor:
        """One dot product a vector."""
        del weak
        return (each_of(vectors) * self._difference[bases // self._states]).sum(-1)

    def multiples(self, vectors: Tensor, factors: Tensor, base: int) -> Tensor:
        """One dot product a vector."""
        return (vectors @ self._difference[base // self._states])[:, None] * factors
