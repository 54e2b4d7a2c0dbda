"""Comparisons as tables, one a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from neuron_attribution.comparisons import (
    ComparedSide,
    Comparison,
    DifferenceRanking,
    HeadEffects,
    NeuronComparison,
    NeuronDifference,
)
from neuron_attribution.display.table import TextTable
from neuron_attribution.display.words import number, token_list, token_text, visible
from neuron_attribution.neurons import Head
from neuron_attribution.results import NeuronScore, Scores, TokenPrediction

SHOWN = 10
"""Layers and heads."""
PREDICTION_COLUMNS = ("", "token", ">id", ">probability", ">log probability", ">rank", "after the prompt")
DIFFERENCE_COLUMNS = (">difference", ">first", ">second")


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """The whole comparison, one table a part."""
    return [
        _prediction_table(comparison),
        _sum_table(comparison),
        _layer_table(comparison),
        _head_table(comparison),
        *_neuron_tables("FFN neurons", comparison.ffn_neurons),
        *_neuron_tables("attention neurons", comparison.attention_neurons),
    ]


def head_effect_tables(effects: HeadEffects, shown: int = SHOWN) -> list[TextTable]:
    """The heads whose zeroing lowers the target's probability most, and those whose zeroing raises it most."""
    prompt = visible("".join(token.text for token in effects.tokens))
    order = np.argsort(effects.changes, axis=None, kind="stable")[: int(np.isfinite(effects.changes).sum())]
    return [
        TextTable("prediction", PREDICTION_COLUMNS, [("explained", *_prediction_cells(effects.target), prompt)]),
        _effect_table("heads that lower it most when they are zeroed", effects, order[:shown]),
        _effect_table("heads that raise it most when they are zeroed", effects, order[::-1][:shown]),
    ]


def _effect_table(title: str, effects: HeadEffects, heads: NDArray[np.intp]) -> TextTable:
    places = [np.unravel_index(head, effects.changes.shape) for head in heads]
    rows = [
        (
            str(Head(int(layer), int(head))),
            number(float(effects.changes[layer, head])),
            number(float(effects.probabilities[layer, head])),
            number(float(effects.kl_divergences[layer, head])),
        )
        for layer, head in places
    ]
    return TextTable(title, ("head", ">change", ">probability", ">KL"), rows)


def _sides(comparison: Comparison) -> tuple[tuple[str, ComparedSide], tuple[str, ComparedSide]]:
    return ("first", comparison.first), ("second", comparison.second)


def _prediction_table(comparison: Comparison) -> TextTable:
    rows = [
        (name, role, *_prediction_cells(prediction), prompt)
        for name, side in _sides(comparison)
        for role, prediction, prompt in (
            ("explained", side.target, visible("".join(token.text for token in side.tokens))),
            ("contrast", side.contrast, ""),
        )
        if prediction is not None
    ]
    return TextTable("predictions", ("", *PREDICTION_COLUMNS), rows)


def _prediction_cells(prediction: TokenPrediction) -> tuple[str, ...]:
    return (
        token_text(prediction.token),
        str(prediction.token.id),
        number(prediction.probability),
        number(prediction.log_probability),
        str(prediction.rank),
    )


def _sum_table(comparison: Comparison) -> TextTable:
    first, second = comparison.first.layers, comparison.second.layers
    sums = [
        ("at the bare embedding", first.embedding_log_probability, second.embedding_log_probability),
        ("added by attention layers", float(first.attention.sum()), float(second.attention.sum())),
        ("added by FFN layers", float(first.ffn.sum()), float(second.ffn.sum())),
        ("at the final state", first.final_log_probability, second.final_log_probability),
    ]
    title = "log probability of the target" + (" minus that of the contrast" if comparison.first.contrast else "")
    return TextTable(title, ("", *DIFFERENCE_COLUMNS), [(name, *_difference_cells(*pair)) for name, *pair in sums])


def _difference_cells(first: float, second: float) -> tuple[str, str, str]:
    return number(first - second), number(first), number(second)


def _layer_table(comparison: Comparison) -> TextTable:
    layers = [(side.layers.attention, side.layers.ffn) for _, side in _sides(comparison)]
    first, second = (np.concatenate(of_side) for of_side in layers)
    count = len(comparison.attention_layers)
    names = [f"{kind} {layer}" for kind in ("attention", "FFN") for layer in range(count)]
    return _strongest_table("layers whose score differs most", "layer", names, first, second)


def _head_table(comparison: Comparison) -> TextTable:
    first, second = comparison.first.head_scores, comparison.second.head_scores
    there = np.isfinite(first)
    names = [str(Head(int(layer), int(head))) for layer, head in np.argwhere(there)]
    return _strongest_table("heads whose score differs most", "head", names, first[there], second[there])


def _strongest_table(title: str, column: str, names: Sequence[str], first: Scores, second: Scores) -> TextTable:
    strongest = np.argsort(-np.abs(first - second), kind="stable")[:SHOWN]
    rows = [(names[item], *_difference_cells(float(first[item]), float(second[item]))) for item in strongest]
    return TextTable(title, (column, *DIFFERENCE_COLUMNS), rows)


def _neuron_tables(kind: str, found: NeuronComparison) -> Iterator[TextTable]:
    counts = f"{found.neurons} exist, {found.scored} scored on both sides"
    for verb, side, ranking in (("fell", "first", found.fell), ("rose", "second", found.rose)):
        title = f"{kind} whose score {verb} most ({counts}, {_exactness(ranking)})"
        columns = ("neuron", *DIFFERENCE_COLUMNS, ">first coefficient", ">second coefficient")
        rows = [(*_neuron_cells(item), token_list(getattr(item, side).promoted)) for item in ranking.neurons]
        yield TextTable(title, (*columns, f"promotes in the {side}"), rows)


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
