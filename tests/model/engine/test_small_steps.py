"""Long work goes in steps, for whose size nothing but time and memory may tell."""

from __future__ import annotations

import pytest
from neuron_attribution.requests import AttributeOptions, Direction, ScoringMethod
from neuron_attribution_server.model.attribution import (
    objectives,
    pooled,
    position_scores,
    projection,
    query_scores,
)
from neuron_attribution_server.model.attribution.search import exact_scores, ranking, value_neurons
from neuron_attribution_server.model.engine.explanation.queries import neurons as query_neurons
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.compare_answers import assert_same
from reference.compared import compare_tiny

SIZES = (
    (exact_scores, "HELD"),
    (objectives, "MULTIPLES_IN_CACHE"),
    (pooled, "MOST_TOGETHER"),
    (position_scores, "HELD"),
    (projection, "LOGITS_HELD"),
    (query_neurons, "SHARES_AT_ONCE"),
    (query_scores, "READ_AT_ONCE"),
    (ranking, "VALUES_AT_ONCE"),
    (value_neurons, "BOUNDS_AT_ONCE"),
)
STEPS = (position_scores, objectives)
"""Where steps are of as many numbers as the device computes between two checkpoints."""


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [ScoringMethod.LOG_PROBABILITY_INCREASE, ScoringMethod.RECIPROCAL_RANK])
def test_the_smallest_steps_give_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, name: str, method: ScoringMethod
) -> None:
    """Of prompts of several lengths, both directions, everything."""
    options = AttributeOptions(
        direction=Direction.BOTH, top_k=15, position_projection_top_k=3, scoring_method=method, query_sources=20
    )
    tasks = [
        AttributeTask(
            token_ids=tuple(range(3, 3 + length)),
            explained=tuple(ExplainedToken(position) for position in range(length - 2, length)),
            options=options,
        )
        for length in (4, 9, 6)
    ]
    engine = compare_tiny(name).engine
    whole = engine.run(tasks)
    for module, size in SIZES:
        monkeypatch.setattr(module, size, 1)
    for module in STEPS:
        monkeypatch.setattr(module, "numbers_at_once", lambda _device: 1)
    for got, want in zip(engine.run(tasks), whole, strict=True):
        for one, other in zip(got.explanations, want.explanations, strict=True):
            assert_same(one, other)
