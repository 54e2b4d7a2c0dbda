"""Numbers within a tolerance, rankings up to scores that close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.results import Projection
from torch import Tensor

from reference.queries import strongest

TOLERANCE = 1e-5


def assert_close(got: object, want: object, what: str, tolerance: float = TOLERANCE) -> None:
    """Within `tolerance`, absolute below one and relative above; what is not a number is none in both."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape} instead of {want.shape}"
    neither = np.isnan(got) & np.isnan(want)
    error = np.where(neither, 0.0, np.abs(got - want) / np.maximum(1, np.abs(want)))
    assert not error.size or error.max() <= tolerance, f"{what}: off by {error.max():.2e}"


def assert_ranking(
    keys: Sequence[tuple[int, ...]],
    got: Sequence[float],
    scores: Mapping[tuple[int, ...], float],
    count: int,
    *,
    increasing: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """The `count` strongest of `scores` in order; only scores closer than the tolerance may change places.

    Scores that are equal to the last bit follow in the order of their keys.
    """
    assert len(keys) == len(set(keys)) == min(count, len(scores))
    assert_close(got, [scores[key] for key in keys], "ranked scores", tolerance)
    sign = -1 if increasing else 1
    loss = [sign * scores[key] for key in keys]
    slack = tolerance * max(1.0, *map(abs, loss)) if loss else 0.0
    for i in range(1, len(keys)):
        assert loss[i] >= max(loss[:i]) - slack, f"{keys[i]} comes too late"
        assert got[i] != got[i - 1] or keys[i] > keys[i - 1], f"{keys[i]} and {keys[i - 1]} are equal and out of order"
    returned = set(keys)
    for key, score in scores.items():
        assert not keys or key in returned or sign * score >= loss[-1] - slack, f"{key} is missing"


def assert_ties_by_index(keys: Sequence[tuple[int, ...]], scores: Mapping[tuple[int, ...], float]) -> None:
    """Exactly what sorting by (score descending, key ascending) gives: for scores that tie in both precisions."""
    assert list(keys) == strongest(scores, len(keys))


def assert_projection(got: Projection, want: Tensor, top_k: int, tolerance: float = TOLERANCE) -> None:
    """The `top_k` highest tokens, highest first, and the lowest, lowest first."""
    numbers = want.numpy()
    for tokens, values, sign in ((got.top, numbers, 1), (got.bottom, -numbers, -1)):
        ids = [token.token.id for token in tokens]
        scores = [sign * token.score for token in tokens]
        assert len(ids) == len(set(ids)) == min(top_k, len(values))
        chosen = values[ids]
        assert_close(scores, chosen, "projection", tolerance)
        assert scores == sorted(scores, reverse=True)
        slack = tolerance * max(1.0, np.abs(chosen).max())
        others = values.copy()
        others[ids] = -np.inf
        assert others.max() <= chosen.min() + slack, f"token {others.argmax()} is missing"


def assert_no_gate(outcome: object) -> None:
    """The outcome is the refusal of a model whose FFN has no gate."""
    assert isinstance(outcome, FailedPreconditionError)
    assert outcome.reason == "NO_GATE"
