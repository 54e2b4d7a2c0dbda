"""Compares what explained tokens do together with the sums of the oracle's explanations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from neuron_attribution.requests import AttributeOptions
from neuron_attribution.results import AggregateExplanation, HeadScore

from reference.compare import TOLERANCE, assert_close, assert_ranking
from reference.compare_neurons import assert_neurons, ranking_key
from reference.oracle import Explained


def assert_sums(got: AggregateExplanation, wants: Sequence[Explained], options: AttributeOptions) -> None:
    """Layers, heads and their positions, and both ends of the rankings of value neurons."""
    tolerance = len(wants) * TOLERANCE
    own = [want.oracle.prediction(want.position, want.target).log_probability for want in wants]
    assert [each.token.id for each in got.targets] == [want.target for want in wants]
    assert_close([each.log_probability for each in got.targets], own, "log probabilities")
    assert_close(got.log_probability, sum(own), "their sum", tolerance)
    layers = [want.layer_scores() for want in wants]
    for mine, theirs in (
        (got.layers.attention, [each.attention for each in layers]),
        (got.layers.ffn, [each.ffn for each in layers]),
        (got.layers.embedding_log_probability, [each.embedding for each in layers]),
        (got.layers.final_log_probability, [each.final for each in layers]),
    ):
        assert_close(mine, sum(theirs), "layers", tolerance)
    assert abs(got.layers.remainder) < len(wants) * 1e-4
    _assert_heads(got, wants, options, tolerance)
    capped = wants[0].weights.cap is not None
    for name, by_token in (
        ("ffn_value_neurons", [want.ffn_neuron_scores() for want in wants]),
        ("attention_value_neurons", [want.attention_neuron_scores() for want in wants]),
    ):
        sums: Counter[tuple[int, ...]] = Counter()
        for scores in by_token:
            for key, score in scores.items():
                sums[key] += score
        for ending, increasing in (("", True), ("_decreasing", False)):
            ranking = getattr(got, name + ending)
            assert_neurons(ranking, sums, options, increasing=increasing, tolerance=tolerance, capped=capped)
            for entry in ranking.neurons:
                theirs = [scores.get(ranking_key(entry), 0.0) for scores in by_token]
                assert_close(entry.token_scores, theirs, f"what {entry.neuron} does at each token")


def _assert_heads(
    got: AggregateExplanation, wants: Sequence[Explained], options: AttributeOptions, tolerance: float
) -> None:
    """Empty in layers without heads, of which no ranking has any."""
    sums = sum(want.head_scores() for want in wants)
    assert_close(got.head_scores, sums, "head scores", tolerance)
    scores = {key: score for key, score in np.ndenumerate(np.asarray(sums)) if not np.isnan(score)}
    for heads, increasing in ((got.heads, True), (got.heads_decreasing, False)):
        keys = [(each.head.layer, each.head.head) for each in heads]
        ranked = [each.score for each in heads]
        assert_ranking(keys, ranked, scores, options.head_top_k, increasing=increasing, tolerance=tolerance)
        for head in heads:
            _assert_positions(head, wants, tolerance)


def _assert_positions(got: HeadScore, wants: Sequence[Explained], tolerance: float) -> None:
    layer, head = got.head.layer, got.head.head
    length = wants[-1].position + 1
    assert_close(got.token_scores, [float(each.head_scores()[layer, head]) for each in wants], f"tokens of {got.head}")
    positions = [np.asarray(each.position_scores(layer, head)) for each in wants]
    attention = [np.asarray(each.attention_weights(layer, head)) for each in wants]
    for mine, theirs, factor in (
        (got.position_scores, positions, 1.0),
        (got.attention_weights, attention, 1 / len(wants)),
    ):
        padded = [np.pad(each, (0, length - len(each))) for each in theirs]
        assert_close(mine, factor * sum(padded), f"positions of {got.head}", tolerance)
