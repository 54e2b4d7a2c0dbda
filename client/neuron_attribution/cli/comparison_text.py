"""Comparisons as text for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuron_attribution.cli.output import Lines, facts, model_text, number, table, token_list, token_text, visible
from neuron_attribution.comparisons import (
    ComparedSide,
    Comparison,
    DifferenceRanking,
    HeadEffects,
    NeuronComparison,
    NeuronDifference,
)
from neuron_attribution.results import NeuronScore, Scores, TokenPrediction

SHOWN = 10
"""Layers and heads."""
PREDICTION_COLUMNS = ("", "token", ">id", ">probability", ">log probability", ">rank", "after the prompt")
DIFFERENCE_COLUMNS = (">difference", ">first", ">second")


def comparison_lines(comparison: Comparison) -> Lines:
    """The whole comparison."""
    parts = [
        _prediction_lines(comparison),
        _sum_lines(comparison),
        _layer_lines(comparison),
        _head_lines(comparison),
        _neuron_lines("FFN neurons", comparison.ffn_neurons),
        _neuron_lines("attention neurons", comparison.attention_neurons),
        _model_lines(comparison),
    ]
    return [line for part in parts for line in ("", *part)][1:]


def head_effect_lines(effects: HeadEffects, shown: int) -> Lines:
    """The heads whose zeroing lowers the target's probability most, and those whose zeroing raises it most."""
    prompt = visible("".join(token.text for token in effects.tokens))
    clean = table("prediction", PREDICTION_COLUMNS, [("explained", *_prediction_cells(effects.target), prompt)])
    foot = facts([("model", model_text(effects.model))])
    order = np.argsort(effects.changes, axis=None, kind="stable")
    lowering = _effect_lines("heads that lower it most when they are zeroed", effects, order[:shown])
    raising = _effect_lines("heads that raise it most when they are zeroed", effects, order[::-1][:shown])
    return [*clean, "", *lowering, "", *raising, "", *foot]


def _effect_lines(title: str, effects: HeadEffects, heads: NDArray[np.intp]) -> Lines:
    places = [np.unravel_index(head, effects.changes.shape) for head in heads]
    rows = [
        (
            f"{layer}.{head}",
            number(float(effects.changes[layer, head])),
            number(float(effects.probabilities[layer, head])),
            number(float(effects.kl_divergences[layer, head])),
        )
        for layer, head in places
    ]
    return table(title, ("head", ">change", ">probability", ">KL"), rows)


def _sides(comparison: Comparison) -> tuple[tuple[str, ComparedSide], tuple[str, ComparedSide]]:
    return ("first", comparison.first), ("second", comparison.second)


def _prediction_lines(comparison: Comparison) -> Lines:
    rows = [
        (name, role, *_prediction_cells(prediction), prompt)
        for name, side in _sides(comparison)
        for role, prediction, prompt in (
            ("explained", side.target, visible("".join(token.text for token in side.tokens))),
            ("contrast", side.contrast, ""),
        )
        if prediction is not None
    ]
    return table("predictions", ("", *PREDICTION_COLUMNS), rows)


def _prediction_cells(prediction: TokenPrediction) -> tuple[str, ...]:
    return (
        token_text(prediction.token),
        str(prediction.token.id),
        number(prediction.probability),
        number(prediction.log_probability),
        str(prediction.rank),
    )


def _sum_lines(comparison: Comparison) -> Lines:
    first, second = comparison.first.layers, comparison.second.layers
    sums = [
        ("at the bare embedding", first.embedding_log_probability, second.embedding_log_probability),
        ("added by attention layers", float(first.attention.sum()), float(second.attention.sum())),
        ("added by FFN layers", float(first.ffn.sum()), float(second.ffn.sum())),
        ("at the final state", first.final_log_probability, second.final_log_probability),
    ]
    title = "log probability of the target" + (" minus that of the contrast" if comparison.first.contrast else "")
    return table(title, ("", *DIFFERENCE_COLUMNS), [(name, *_difference_cells(*pair)) for name, *pair in sums])


def _difference_cells(first: float, second: float) -> tuple[str, str, str]:
    return number(first - second), number(first), number(second)


def _layer_lines(comparison: Comparison) -> Lines:
    layers = [(side.layers.attention, side.layers.ffn) for _, side in _sides(comparison)]
    first, second = (np.concatenate(of_side) for of_side in layers)
    count = len(comparison.attention_layers)
    names = [f"{kind} {layer}" for kind in ("attention", "FFN") for layer in range(count)]
    return _strongest_lines("layers whose score differs most", "layer", names, first, second)


def _head_lines(comparison: Comparison) -> Lines:
    first, second = comparison.first.head_scores, comparison.second.head_scores
    names = [f"{layer}.{head}" for layer, head in np.ndindex(first.shape)]
    return _strongest_lines("heads whose score differs most", "head", names, first.ravel(), second.ravel())


def _strongest_lines(title: str, column: str, names: Sequence[str], first: Scores, second: Scores) -> Lines:
    strongest = np.argsort(-np.abs(first - second), kind="stable")[:SHOWN]
    rows = [(names[item], *_difference_cells(float(first[item]), float(second[item]))) for item in strongest]
    return table(title, (column, *DIFFERENCE_COLUMNS), rows)


def _neuron_lines(kind: str, found: NeuronComparison) -> Lines:
    counts = f"{found.neurons} exist, {found.scored} scored on both sides"
    lines = []
    for verb, side, ranking in (("fell", "first", found.fell), ("rose", "second", found.rose)):
        title = f"{kind} whose score {verb} most ({counts}, {_exactness(ranking)})"
        columns = ("neuron", *DIFFERENCE_COLUMNS, ">first coefficient", ">second coefficient")
        rows = [(*_neuron_cells(item), token_list(getattr(item, side).promoted)) for item in ranking.neurons]
        lines += ["", *table(title, (*columns, f"promotes in the {side}"), rows)]
    return lines[1:]


def _exactness(ranking: DifferenceRanking) -> str:
    if ranking.exact:
        return "exact"
    if ranking.gap:
        return f"not exact: one that differs by up to {number(ranking.gap)} more may be missing"
    return "not guaranteed to be exact"


def _neuron_cells(item: NeuronDifference) -> tuple[str, ...]:
    def coefficient(score: NeuronScore) -> str:
        return number(score.coefficient)

    scores = _difference_cells(item.first.score, item.second.score)
    return str(item.neuron), *scores, coefficient(item.first), coefficient(item.second)


def _model_lines(comparison: Comparison) -> Lines:
    first, second = comparison.first.model, comparison.second.model
    if first == second:
        return facts([("model", model_text(first))])
    return facts([("first model", model_text(first)), ("second model", model_text(second))])
