"""What methods that need ranks may cost at the most: every neuron's rank, once."""

from __future__ import annotations

import pytest
import torch
from neuron_attribution.requests import AttributeOptions, Part, ScoringMethod
from neuron_attribution_server.model.attribution.search import static_search
from reference.compared import compare_tiny
from torch import Tensor

PROMPT = (45, 73, 93, 18, 59, 56)


@pytest.mark.parametrize("method", [ScoringMethod.RECIPROCAL_RANK, ScoringMethod.COEFFICIENT_RECIPROCAL_RANK])
def test_a_neuron_is_ranked_once_for_all_positions(monkeypatch: pytest.MonkeyPatch, method: ScoringMethod) -> None:
    """Though bounds tell nothing apart, and each position of an attention neuron is an entry of its own."""
    ranked: list[int] = []
    right = static_search.vocabulary_ranks

    def counting(unembedding: object, vectors: Tensor, targets: Tensor) -> Tensor:
        ranked.append(len(vectors))
        return right(unembedding, vectors, targets)

    monkeypatch.setattr(static_search, "vocabulary_ranks", counting)
    monkeypatch.setattr(static_search, "least_ranks", lambda _, vectors, __: torch.ones(len(vectors), dtype=torch.long))
    tiny = compare_tiny("llama")
    parts = frozenset({Part.ATTENTION_VALUE_NEURONS})
    got = tiny.check(PROMPT, 5, options=AttributeOptions(parts=parts, scoring_method=method, top_k=10_000))
    units = len(tiny.weights.layers) * tiny.weights.heads * tiny.weights.head_size
    assert got.attention_value_neurons.coverage.scored == units * len(PROMPT)
    assert sum(ranked) == units
