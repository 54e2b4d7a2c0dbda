"""A comparison as an HTML page."""

from __future__ import annotations

from neuron_attribution.comparisons import Comparison, DifferenceRanking
from neuron_attribution.display.plain_json import plain
from neuron_attribution.report.page import page
from neuron_attribution.report.tables import table

COLUMNS = ("neuron", "difference", "score, first", "score, second", "coefficient, first", "coefficient, second")


def comparison_page(comparison: Comparison) -> str:
    """The whole page."""
    first, second = (repr(side.target.token.text) for side in (comparison.first, comparison.second))
    return page(f"Why {first} here and {second} there?", "comparison", {"result": plain(comparison)}, _text(comparison))


def _text(comparison: Comparison) -> str:
    kinds = {"FFN neurons": comparison.ffn_neurons, "attention neurons": comparison.attention_neurons}
    return "".join(
        _ranking(f"{title}, {end}", ranking)
        for title, neurons in kinds.items()
        for end, ranking in (("more on the first side", neurons.fell), ("more on the second side", neurons.rose))
    )


def _ranking(title: str, ranking: DifferenceRanking) -> str:
    rows = (
        (
            item.neuron,
            item.difference,
            item.first.score,
            item.second.score,
            item.first.coefficient,
            item.second.coefficient,
        )
        for item in ranking.neurons
    )
    return table(title, COLUMNS, rows)
