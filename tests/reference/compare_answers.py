"""Compares two answers of the engine to one question."""

from __future__ import annotations

from neuron_attribution.results import Explanation, NeuronRanking

from reference.compare import TOLERANCE, assert_close
from reference.compare_neurons import ranking_key

VALUE_RANKINGS = (
    "ffn_value_neurons",
    "ffn_value_neurons_decreasing",
    "attention_value_neurons",
    "attention_value_neurons_decreasing",
)
QUERY_RANKINGS = ("query_ffn_neurons", "query_ffn_neurons_decreasing")
MAGNIFIED = 10
"""Query scores are quotients: rounding counts for more than in other scores."""


def assert_same(got: Explanation, other: Explanation, tolerance: float = TOLERANCE) -> None:
    """Two answers of the engine to one question."""
    assert (got.position, got.target.token.id, got.target.rank) == (
        other.position,
        other.target.token.id,
        other.target.rank,
    )
    assert_close(got.target.log_probability, other.target.log_probability, "log probability", tolerance)
    assert_close(got.layers.attention, other.layers.attention, "attention layers", tolerance)
    assert_close(got.layers.ffn, other.layers.ffn, "FFN layers", tolerance)
    assert_close(got.head_scores, other.head_scores, "heads", tolerance)
    for name in ("heads", "heads_decreasing"):
        mine, theirs = ({head.head: head for head in getattr(side, name)} for side in (got, other))
        for head in mine.keys() & theirs.keys():
            assert_close(mine[head].position_scores, theirs[head].position_scores, f"positions of {head}", tolerance)
    for name in VALUE_RANKINGS:
        _assert_same_ranking(getattr(got, name), getattr(other, name), name, tolerance)
    for name in QUERY_RANKINGS:
        _assert_same_ranking(getattr(got, name), getattr(other, name), name, MAGNIFIED * tolerance)
    for name in ("ffn_query_layers", "attention_query_layers"):
        mine, theirs = (
            {(component.kind, component.layer): component.score for component in getattr(side, name).layers}
            for side in (got, other)
        )
        assert mine.keys() == theirs.keys()
        assert_close([mine[key] for key in mine], [theirs[key] for key in mine], name, MAGNIFIED * tolerance)


def _assert_same_ranking(got: NeuronRanking | None, other: NeuronRanking | None, what: str, tolerance: float) -> None:
    """The same scores at the same places; a neuron in only one of them is as strong as the weakest."""
    assert (got is None) == (other is None)
    if got is None:
        return
    mine, theirs = ([entry.score for entry in side.neurons] for side in (got, other))
    assert_close(mine, theirs, what, tolerance)
    by_key = {ranking_key(entry): entry.score for entry in other.neurons}
    for entry in got.neurons:
        if ranking_key(entry) in by_key:
            assert_close(entry.score, by_key[ranking_key(entry)], what, tolerance)
        else:
            assert_close(entry.score, theirs[-1], what, tolerance)
