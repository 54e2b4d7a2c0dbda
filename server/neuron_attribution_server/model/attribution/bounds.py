"""How far float32 can push a computed score above its computed bound.

A neuron is skipped only if its bound plus this slack is below the k-th best score. With u = 2^-24, a dot product of
length n errs by at most g(n) |x| |y|, g(n) = LAMBDA sqrt(n) u, with probability at least 1 - 2 n exp(-LAMBDA^2 / 2)
(Higham & Mary 2019, doi 10.1137/18M1226312, theorem 2.4; 1e-9 for the longest sum here). For coefficient a, subvalue v
(folded: v'), frozen scale s, slope q and M = max_j |W_U[j]|:

    the bound's own dot product <q, v>:                          |a| |v| |q| g(d)
    Delta_j in the target's term and in the mean:                |a| |v'| 2 g(d) M / s
    the mean of W_U that the slope subtracts:                    |a| |v'| g(block) M / s
    log, exp, pairwise sums in blocks and the sum of blocks:     (2 log V + 4 log2 V + 16 + V / block) u
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from neuron_attribution_server.model.attribution.exact_products import error_factor
from neuron_attribution_server.model.attribution.unembedding import UNIT_ROUNDOFF, Unembedding, dot_product_error


@dataclass(frozen=True, slots=True, eq=False)
class Slack:
    """Slack of a neuron = |a| (per_norm |v| + per_folded_norm |v'|) + constant; the first two are [E, S].

    Where a norm stands behind the neurons |v| is the norm of the row before it, times the norm's largest weight.
    """

    per_norm: Tensor
    per_folded_norm: Tensor
    constant: float


def rounding_slack(unembedding: Unembedding, slopes: Tensor, scale: Tensor) -> Slack:
    """The slack at each base, for slopes [E, S, d] and frozen scales [E]."""
    vocabulary, dot = len(unembedding.weight), unembedding.dot_error
    expectation = dot_product_error(min(vocabulary, unembedding.block_size)) * error_factor(unembedding.weight)
    per_norm = dot * slopes.norm(dim=-1)
    row = (2 * dot + expectation) * unembedding.largest_norm / scale
    constant = (
        2 * math.log(vocabulary) + 4 * math.log2(vocabulary) + 16 + vocabulary / unembedding.block_size
    ) * UNIT_ROUNDOFF
    return Slack(per_norm, row[:, None].expand_as(per_norm), constant)
