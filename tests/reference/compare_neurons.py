"""Compares the engine's rankings of value neurons, and the neurons in them, with the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Neuron
from neuron_attribution.requests import AttributeOptions, Direction, Part, ScoringMethod
from neuron_attribution.results import Explanation, NeuronRanking, NeuronScore, ProjectedRank, Projection, PromotedSide
from torch import Tensor

from reference import projections
from reference.compare import TOLERANCE, assert_close, assert_projection, assert_ranking
from reference.experts import ffn_name
from reference.oracle import Explained

INCREASING = (Direction.INCREASE, Direction.BOTH)
OF_LOGITS = (
    ScoringMethod.LOG_PROBABILITY_INCREASE,
    ScoringMethod.LOG_PROBABILITY,
    ScoringMethod.PROBABILITY_INCREASE,
)
DECREASING = (Direction.DECREASE, Direction.BOTH)


def ranking_key(entry: NeuronScore) -> tuple[int, ...]:
    """(layer, index), or (layer, head, index, position), without the position where a ranking has none."""
    if isinstance(entry.neuron, FfnNeuron):
        assert entry.position is None
        return entry.neuron.layer, ffn_name(entry.neuron)
    place = () if entry.position is None else (entry.position,)
    return entry.neuron.layer, entry.neuron.head, entry.neuron.index, *place


def assert_neurons(
    ranking: NeuronRanking,
    scores: Mapping[tuple[int, ...], float],
    options: AttributeOptions,
    *,
    increasing: bool,
    tolerance: float,
    capped: bool = False,
) -> None:
    """A ranking of neurons and its coverage, an exact one; where logits are capped that is not claimed but earned."""
    keys = [ranking_key(entry) for entry in ranking.neurons]
    assert_ranking(
        keys,
        [entry.score for entry in ranking.neurons],
        scores,
        options.top_k,
        increasing=increasing,
        tolerance=tolerance,
    )
    coverage = ranking.coverage
    assert coverage.exact == (not capped or coverage.scored == coverage.neurons)
    assert coverage.neurons == len(scores)
    assert len(keys) <= coverage.scored <= coverage.neurons
    if options.exhaustive:
        assert coverage.scored == coverage.neurons
    else:
        assert coverage.bounded <= coverage.neurons


def assert_value_neurons(got: Explanation, want: Explained, options: AttributeOptions, tolerance: float) -> None:
    method = options.scoring_method
    capped = want.weights.cap is not None and method in OF_LOGITS
    pairs = []
    if Part.FFN_VALUE_NEURONS in options.parts:
        pairs.append((got.ffn_value_neurons, got.ffn_value_neurons_decreasing, want.ffn_neuron_scores(method)))
    if Part.ATTENTION_VALUE_NEURONS in options.parts:
        whole = options.attention_neurons_over_positions
        scores = want.whole_attention_neuron_scores(method) if whole else want.attention_neuron_scores(method)
        pairs.append((got.attention_value_neurons, got.attention_value_neurons_decreasing, scores))
    for increasing, decreasing, scores in pairs:
        assert (increasing is not None) == (options.direction in INCREASING)
        assert (decreasing is not None) == (options.direction in DECREASING)
        if increasing is not None:
            assert_neurons(increasing, scores, options, increasing=True, tolerance=tolerance, capped=capped)
        if decreasing is not None:
            assert_neurons(decreasing, scores, options, increasing=False, tolerance=tolerance, capped=capped)
        for ranking in filter(None, (increasing, decreasing)):
            for entry in ranking.neurons:
                assert_entry(entry, want, tolerance)
            assert_projections(ranking.neurons, want, options.projection_top_k, tolerance)


def assert_entry(entry: NeuronScore, want: Explained, tolerance: float) -> None:
    """A value neuron's coefficient and promoted side."""
    neuron = entry.neuron
    if isinstance(neuron, AttentionNeuron):
        coefficient = want.attention_coefficient(neuron.layer, neuron.head, neuron.index, entry.position)
    else:
        coefficient = want.ffn_coefficient(neuron.layer, ffn_name(neuron))
    assert_close(entry.coefficient, coefficient, f"coefficient of {neuron}", tolerance)
    if abs(coefficient) > tolerance:
        assert entry.promoted_side is (PromotedSide.TOP if coefficient > 0 else PromotedSide.BOTTOM)


def assert_projections(entries: Sequence[NeuronScore], want: Explained, top_k: int, tolerance: float) -> None:
    """The projections of the entries' subvalues, or none when none were asked for."""
    if not top_k:
        for entry in entries:
            assert entry.projection in (None, Projection())
            assert entry.target is entry.contrast is None
        return
    projected = projections.project_subvalues(want.weights, [entry.neuron for entry in entries])
    for entry, values in zip(entries, projected, strict=True):
        assert_projection(entry.projection, values, top_k, tolerance)
        assert_standing(entry.target, values, want.target, tolerance)
        if want.contrast is None:
            assert entry.contrast is None
        else:
            assert_standing(entry.contrast, values, want.contrast, tolerance)


def assert_standing(got: ProjectedRank, values: Tensor, token: int, tolerance: float) -> None:
    """A token's value in a projection, and its rank up to tokens whose values are as close as the tolerance."""
    assert_close(got.score, values[token], f"value of {token}", tolerance)
    slack = tolerance * max(1.0, abs(values[token].item()))
    above, close = (values > values[token] + slack).sum(), ((values - values[token]).abs() <= slack).sum()
    assert above < got.rank <= above + close


def assert_named(
    got: NeuronScore, neuron: Neuron, want: Explained, projection_top_k: int, tolerance: float = TOLERANCE
) -> None:
    """A neuron the request named, an attention neuron with all its source positions together."""
    assert (got.neuron, got.position) == (neuron, None)
    if isinstance(neuron, AttentionNeuron):
        score = want.whole_attention_neuron_score(neuron.layer, neuron.head, neuron.index)
    else:
        score = want.ffn_layer_scores(neuron.layer)[neuron.layer, ffn_name(neuron)]
    assert_close(got.score, score, f"score of {neuron}", tolerance)
    assert_entry(got, want, tolerance)
    assert_projections([got], want, projection_top_k, tolerance)
