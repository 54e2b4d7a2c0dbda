"""Multiples of the same vectors: what each adds, from one product with the unembedding for all of a vector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from neuron_attribution_server.model.attribution import host, objectives
from neuron_attribution_server.model.attribution.capped_objectives import CappedObjective
from neuron_attribution_server.model.attribution.objectives import (
    LogProbability,
    LogProbabilityDifference,
    Multiples,
    Objective,
    is_shared,
    read_bases,
)
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from torch import Tensor

VOCABULARY, HIDDEN, ROWS, STATES = 97, 8, 3, 5
VECTORS, MANY = 7, 700
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(VOCABULARY, HIDDEN, generator=GENERATOR)
BASES = torch.randn(ROWS, STATES, HIDDEN, generator=GENERATOR)
TARGETS, CONTRASTS, SCALE = torch.tensor([5, 80, 2]), torch.tensor([7, 1, 96]), torch.tensor([1.0, 0.5, 2.0])


def unembedding(cap: float | None = None) -> Unembedding:
    return Unembedding(WEIGHT, torch.ones(HIDDEN), 1e-6, False, None, float(WEIGHT.norm(dim=-1).max()), cap)


def probability() -> Objective:
    read = read_bases(unembedding(), BASES, SCALE, include_constant=False)
    return LogProbability(unembedding(), read, SCALE, TARGETS)


def difference() -> Objective:
    return LogProbabilityDifference(unembedding(), BASES, SCALE, TARGETS, CONTRASTS, include_constant=False)


def capped() -> Objective:
    return CappedObjective(unembedding(30.0), BASES, SCALE, TARGETS, None, include_constant=False)


def multiples(vectors: int, many: int, largest: float = 1.0) -> tuple[Multiples, Tensor]:
    """Some vectors, many multiples of them, from tiny ones to the largest, and bases."""
    found = Multiples(
        torch.randn(vectors, HIDDEN, generator=GENERATOR),
        torch.randint(vectors, (many,), generator=GENERATOR),
        largest * torch.randn(many, generator=GENERATOR) * 10 ** -(5 * torch.rand(many, generator=GENERATOR)),
    )
    return found, torch.randint(ROWS * STATES, (many,), generator=GENERATOR)


@pytest.mark.parametrize("make", [probability, difference, capped])
@pytest.mark.parametrize("where", ["cpu", "none"])
@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize(("vectors", "many"), [(VECTORS, MANY), (VECTORS, 3), (600, MANY)])
def test_multiples_are_scored_as_each_is(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Objective], where: str, weak: bool, vectors: int, many: int
) -> None:
    """In parts of up to hundreds; where most are of different vectors, too."""
    monkeypatch.setattr(host, "HOST", where)
    objective = make()
    some, bases = multiples(vectors, many)
    assert torch.allclose(
        objective.increases(some, bases, weak=weak), objective.increases(some.each(), bases, weak=weak), atol=3e-6
    )


def test_multiples_that_leave_the_range_of_numbers() -> None:
    some, bases = multiples(VECTORS, MANY, largest=1000)
    got, want = (probability().increases(each, bases) for each in (some, some.each()))
    assert want.abs().max() > 1000
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_vocabulary_is_read_once_for_each_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what is pooled with others; what is too weak is not read at all."""
    read: list[int] = []
    product, add_product = objectives.product, objectives.add_product

    def counted(vectors: Tensor, matrix: Tensor) -> Tensor:
        read.append(len(vectors) * len(matrix))
        return product(vectors, matrix)

    def added(sums: Tensor, vectors: Tensor, matrix: Tensor) -> Tensor:
        read.append(len(vectors) * len(matrix))
        return add_product(sums, vectors, matrix)

    monkeypatch.setattr(objectives, "product", counted)
    monkeypatch.setattr(objectives, "add_product", added)
    monkeypatch.setattr(objectives, "VECTORS_AT_ONCE", MANY)
    pooled = PooledIncreases(probability(), SearchSeconds())
    some, bases = multiples(VECTORS, MANY)
    plain = some.each()[:4]
    shared, other = pooled.ask(some, bases, weak=True), pooled.ask(plain, bases[:4])
    assert torch.allclose(shared()[:4], other(), atol=3e-6)
    assert 0 < sum(read) <= (VECTORS + 4) * VOCABULARY


def test_what_is_shared() -> None:
    assert is_shared(300, 150)
    assert not is_shared(300, 151)
    assert not is_shared(100, 1)
