"""Scoring looks up between any two steps of it that each read the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from neuron_attribution_server.model.attribution.capped_objectives import CappedObjective
from neuron_attribution_server.model.attribution.checkpoints import at_checkpoints
from neuron_attribution_server.model.attribution.objectives import LogProbability, read_bases
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from torch import Tensor

VOCABULARY, HIDDEN, MANY = 97, 8, 40


def objective(cap: float | None) -> LogProbability | CappedObjective:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    largest = float(weight.norm(dim=-1).max())
    unembedding = Unembedding(weight, torch.ones(HIDDEN), 1e-6, False, None, largest, cap)
    bases = torch.randn(1, 1, HIDDEN, generator=generator)
    scale, targets = torch.ones(1), torch.tensor([5])
    if cap is None:
        return LogProbability(
            unembedding, read_bases(unembedding, bases, scale, include_constant=False), scale, targets
        )
    return CappedObjective(unembedding, bases, scale, targets, None, include_constant=False)


def looks(work: Callable[[], Tensor]) -> int:
    """How often it looks up."""
    seen: list[None] = []
    with at_checkpoints(lambda: seen.append(None)):
        assert work().isfinite().all()
    return len(seen)


def test_vectors_that_leave_the_range_of_numbers_are_scored_one_by_one() -> None:
    vectors = 1000 * torch.randn(MANY, HIDDEN, generator=torch.Generator().manual_seed(1))
    scored = objective(None)
    assert looks(lambda: scored.increases(vectors, torch.zeros(MANY, dtype=torch.long))) >= MANY


@pytest.mark.parametrize("cap", [None, 30.0])
def test_the_multiples_of_a_vector_are_scored_one_by_one(cap: float | None) -> None:
    """There are as many as source positions: thousands."""
    scored = objective(cap)
    assert looks(lambda: scored.multiples(torch.ones(3, HIDDEN), torch.full((3, MANY), 0.1), 0)) >= MANY
