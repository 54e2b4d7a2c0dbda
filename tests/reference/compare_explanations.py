"""Compares a whole explanation of the engine with the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from neuron_attribution.requests import AttributeOptions, Part
from neuron_attribution.results import Explanation, HeadScore, PromotedSide, QueryLayers, TokenPrediction

from reference import projections, queries
from reference.compare import TOLERANCE, assert_close, assert_projection, assert_ranking
from reference.compare_neurons import (
    DECREASING,
    INCREASING,
    assert_neurons,
    assert_projections,
    assert_value_neurons,
    ranking_key,
)
from reference.oracle import Explained


def assert_explanation(
    got: Explanation,
    want: Explained,
    options: AttributeOptions,
    tolerance: float = TOLERANCE,
    *,
    allow_cancellation: bool = True,
) -> None:
    """Every part that `options` ask for; query scores with more tolerance where divisors cancel, if allowed."""
    assert got.position == want.position
    assert_prediction(got.target, want, want.target, tolerance)
    if want.contrast is None:
        assert got.contrast is None
    else:
        assert_prediction(got.contrast, want, want.contrast, tolerance)
    assert_predictions(got.predictions, want, tolerance)
    if Part.LAYERS in options.parts:
        assert_layers(got, want, tolerance)
    if Part.HEADS in options.parts:
        assert_close(got.head_scores, want.head_scores(), "head scores", tolerance)
    if Part.HEAD_POSITIONS in options.parts:
        _assert_heads(got, want, options, tolerance)
    if Part.ATTENTION_PATTERNS in options.parts:
        layers, heads = len(want.layers), range(want.weights.heads)
        patterns = [torch.stack([want.attention_weights(layer, head) for head in heads]) for layer in range(layers)]
        assert_close(got.attention_patterns, torch.stack(patterns), "patterns", tolerance)
    else:
        assert got.attention_patterns is None
    assert_value_neurons(got, want, options, tolerance)
    _assert_queries(got, want, options, tolerance, allow_cancellation)


def assert_scores_absolutely(
    got: Explanation, want: Explained, options: AttributeOptions, tolerance: float = TOLERANCE
) -> None:
    """Every score of every part, however large, to `tolerance` absolute."""
    layers = want.layer_scores()
    attention, ffn = want.attention_neuron_scores(), want.ffn_neuron_scores()
    sources = source_keys(attention, options.query_sources)
    ffn_sources = source_keys(ffn, options.query_sources)
    query_layers = (
        (got.ffn_query_layers, queries.ffn_query_layers(want, ffn_sources, ffn, options.subkey)),
        (got.attention_query_layers, queries.attention_query_layers(want, sources, attention)),
    )
    query_neurons = queries.query_ffn_neurons(want, sources, attention).scores
    pairs = [
        *zip(got.layers.attention.tolist(), layers.attention, strict=True),
        *zip(got.layers.ffn.tolist(), layers.ffn, strict=True),
        *zip(got.head_scores.ravel().tolist(), want.head_scores().ravel().tolist(), strict=True),
        *((n.score, ffn[ranking_key(n)]) for n in got.ffn_value_neurons.neurons),
        *((n.score, attention[ranking_key(n)]) for n in got.attention_value_neurons.neurons),
        *((n.score, query_neurons[ranking_key(n)]) for n in got.query_ffn_neurons.neurons),
        *((c.score, expected.scores[c.kind, c.layer]) for found, expected in query_layers for c in found.layers),
    ]
    for head in got.heads:
        positions = want.position_scores(head.head.layer, head.head.head)
        pairs += zip(head.position_scores.tolist(), positions.tolist(), strict=True)
    worst = max(abs(float(a) - float(b)) for a, b in pairs)
    print(f"{len(pairs)} scores differ by at most {worst:.1e}")
    assert worst <= tolerance


def assert_prediction(got: TokenPrediction, want: Explained, token: int, tolerance: float) -> None:
    """The model's own prediction of `token`."""
    fact = want.oracle.prediction(want.position, token)
    assert (got.token.id, got.rank) == (token, fact.rank)
    assert_close(got.probability, fact.probability, "probability", tolerance)
    assert_close(got.log_probability, fact.log_probability, "log probability", tolerance)


def assert_predictions(got: Sequence[TokenPrediction], want: Explained, tolerance: float) -> None:
    """The most probable tokens in order, each with the model's own facts."""
    assert got
    for rank, prediction in enumerate(got, start=1):
        assert prediction.rank == rank
        assert_prediction(prediction, want, prediction.token.id, tolerance)


def assert_layers(got: Explanation, want: Explained, tolerance: float) -> None:
    """Layer scores, both ends, and that nothing is left over."""
    scores = want.layer_scores()
    assert_close(got.layers.attention, scores.attention, "attention layers", tolerance)
    assert_close(got.layers.ffn, scores.ffn, "FFN layers", tolerance)
    assert_close(got.layers.embedding_log_probability, scores.embedding, "embedding log probability", tolerance)
    assert_close(got.layers.final_log_probability, scores.final, "final log probability", tolerance)
    assert abs(got.layers.remainder) < 1e-4


def _assert_heads(got: Explanation, want: Explained, options: AttributeOptions, tolerance: float) -> None:
    every = {(layer, head): s for layer, row in enumerate(want.head_scores().tolist()) for head, s in enumerate(row)}
    scores = {key: score for key, score in every.items() if not math.isnan(score)}
    for heads, increasing, asked in (
        (got.heads, True, options.direction in INCREASING),
        (got.heads_decreasing, False, options.direction in DECREASING),
    ):
        if not asked:
            assert heads == ()
            continue
        keys = [(head.head.layer, head.head.head) for head in heads]
        ranked = [head.score for head in heads]
        assert_ranking(keys, ranked, scores, options.head_top_k, increasing=increasing, tolerance=tolerance)
        for head in heads:
            _assert_head(head, want, options.position_projection_top_k, tolerance)


def _assert_head(got: HeadScore, want: Explained, top_k: int, tolerance: float) -> None:
    layer, head = got.head.layer, got.head.head
    scores = want.position_scores(layer, head)
    assert_close(got.position_scores, scores, f"positions of {got.head}", tolerance)
    weights = want.attention_weights(layer, head)
    assert_close(got.attention_weights, weights, f"attention weights of {got.head}", tolerance)
    if not top_k:
        assert got.positions == ()
        return
    keys = [(position.position,) for position in got.positions]
    assert keys
    ranked = [float(got.position_scores[position.position]) for position in got.positions]
    by_position = {(position,): score for position, score in enumerate(scores.tolist())}
    assert_ranking(keys, ranked, by_position, len(keys), tolerance=tolerance)
    projected = projections.project_positions(want, layer, head, [position.position for position in got.positions])
    for position, expected in zip(got.positions, projected, strict=True):
        for projection, values in zip(
            (position.layer_input, position.key, position.value_output), expected, strict=True
        ):
            assert_projection(projection, values, top_k, tolerance)


def _assert_queries(
    got: Explanation, want: Explained, options: AttributeOptions, tolerance: float, allow_cancellation: bool
) -> None:
    wanted = options.parts & {Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS}
    if not wanted:
        return

    def allowed(expected: queries.QueryScores) -> float:
        return query_tolerance(expected, tolerance) if allow_cancellation else tolerance

    attention = want.attention_neuron_scores()
    attention_sources = source_keys(attention, options.query_sources)
    if Part.QUERY_LAYERS in wanted:
        ffn = want.ffn_neuron_scores()
        ffn_sources = source_keys(ffn, options.query_sources)
        expected = queries.ffn_query_layers(want, ffn_sources, ffn, options.subkey)
        assert_query_layers(got.ffn_query_layers, expected, len(ffn_sources), allowed(expected))
        expected = queries.attention_query_layers(want, attention_sources, attention)
        assert_query_layers(got.attention_query_layers, expected, len(attention_sources), allowed(expected))
    if Part.QUERY_FFN_NEURONS in wanted:
        expected = queries.query_ffn_neurons(want, attention_sources, attention)
        _assert_query_neurons(got, want, options, expected, allowed(expected))


def source_keys(scores: Mapping[tuple[int, ...], float], count: int) -> list[tuple[int, ...]]:
    """The query sources; fails where float32 could choose others."""
    keys = queries.strongest(scores, count + 1)
    if len(keys) > count > 0:
        assert scores[keys[count - 1]] - scores[keys[count]] > TOLERANCE, "choose another prompt: sources tie"
    return keys[:count]


def query_tolerance(expected: queries.QueryScores, tolerance: float) -> float:
    """A divisor much smaller than its terms magnifies float32's rounding."""
    return tolerance * max(1.0, expected.magnification / 10)


def assert_query_layers(got: QueryLayers, expected: queries.QueryScores, sources: int, tolerance: float) -> None:
    """Every component, highest score first."""
    assert (got.sources, got.skipped_sources) == (sources, 0)
    keys = [(component.kind, component.layer) for component in got.layers]
    assert len(keys) == len(set(keys)) == len(expected.scores)
    scores = [component.score for component in got.layers]
    assert_close(scores, [expected.scores[key] for key in keys], "query layers", tolerance)
    assert scores == sorted(scores, reverse=True)


def _assert_query_neurons(
    got: Explanation, want: Explained, options: AttributeOptions, expected: queries.QueryScores, tolerance: float
) -> None:
    for ranking, increasing, asked in (
        (got.query_ffn_neurons, True, options.direction in INCREASING),
        (got.query_ffn_neurons_decreasing, False, options.direction in DECREASING),
    ):
        assert (ranking is not None) == asked
        if ranking is None:
            continue
        assert_neurons(ranking, expected.scores, options, increasing=increasing, tolerance=tolerance)
        for entry in ranking.neurons:
            assert entry.coefficient is None
            end = expected.written[ranking_key(entry)]
            if abs(end) > tolerance:
                assert entry.promoted_side is (PromotedSide.TOP if end > 0 else PromotedSide.BOTTOM)
        assert_projections(ranking.neurons, want, options.projection_top_k, tolerance)
