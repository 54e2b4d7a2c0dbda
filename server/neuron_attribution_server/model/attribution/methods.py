"""The paper's eight static scores of value neurons (Table 2, a to h).

a, b and c are monotone in the increase of a log probability, so its bounds bound them: b is the increase over an empty
residual stream. d, e and g need no vocabulary. f and h need the target's rank in every neuron's projection.
"""

from __future__ import annotations

from collections.abc import Callable

from neuron_attribution.requests import ScoringMethod
from torch import Tensor

FromIncrease = Callable[[Tensor, Tensor], Tensor]
"""A score from the increase of the log probability and the log probability at the base; monotone in the increase."""

A = ScoringMethod.LOG_PROBABILITY_INCREASE
B = ScoringMethod.LOG_PROBABILITY
C = ScoringMethod.PROBABILITY_INCREASE
D = ScoringMethod.NORM
E = ScoringMethod.COEFFICIENT
F = ScoringMethod.RECIPROCAL_RANK
G = ScoringMethod.COEFFICIENT_NORM
H = ScoringMethod.COEFFICIENT_RECIPROCAL_RANK


def _increase(increase: Tensor, _base: Tensor) -> Tensor:
    return increase


def _log_probability(increase: Tensor, base: Tensor) -> Tensor:
    return increase + base


def _probability_increase(increase: Tensor, base: Tensor) -> Tensor:
    """A bound may exceed certainty; a probability does not."""
    return (increase + base).clamp_max(0).exp() - base.exp()


FROM_INCREASE: dict[ScoringMethod, FromIncrease] = {A: _increase, B: _log_probability, C: _probability_increase}
"""The methods that follow from the increase of the log probability and the log probability at the base."""

NEEDS_RANKS = frozenset({F, H})


def static_scores(method: ScoringMethod, coefficients: Tensor, norms: Tensor, ranks: Tensor | None) -> Tensor:
    """Scores d to h of coefficients, with subvalue norms and ranks of shapes that go with theirs."""
    magnitude = coefficients.abs() if method in {E, G, H} else coefficients.new_ones(coefficients.shape)
    if ranks is not None:
        return magnitude / ranks
    return magnitude * norms if method in {D, G} else magnitude
