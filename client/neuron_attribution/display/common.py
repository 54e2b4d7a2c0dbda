"""Neurons that are as strong whatever is asked: shown faintly, and left out where that is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from neuron_attribution.results import AttributeResult, Explanation, NeuronScore, RankingName

COMMON = 0.25
"""The part of the server's contexts in which a common neuron is as strong, at least."""


def is_common(score: NeuronScore) -> bool:
    """Whether a neuron is as strong in at least a quarter of the server's contexts."""
    return score.activity is not None and score.activity >= COMMON


def without_common(result: AttributeResult) -> tuple[AttributeResult, int]:
    """The result with rankings that lack common neurons, and how many they lack."""
    pairs = [_without_common(explanation) for explanation in result.explanations]
    return replace(result, explanations=tuple(each for each, _ in pairs)), sum(count for _, count in pairs)


def _without_common(explanation: Explanation) -> tuple[Explanation, int]:
    rankings = {name: getattr(explanation, name) for name in get_args(RankingName)}
    kept = {
        name: replace(ranking, neurons=tuple(score for score in ranking.neurons if not is_common(score)))
        for name, ranking in rankings.items()
        if ranking is not None
    }
    hidden = sum(len(rankings[name].neurons) - len(ranking.neurons) for name, ranking in kept.items())
    return replace(explanation, **kept), hidden
