"""Comparisons as text for people."""

from __future__ import annotations

from neuron_attribution.cli.output import Lines, facts, model_text, text_tables
from neuron_attribution.comparisons import Comparison, HeadEffects
from neuron_attribution.display.comparisons import comparison_tables, head_effect_tables


def comparison_lines(comparison: Comparison) -> Lines:
    """The whole comparison."""
    first, second = comparison.first.model, comparison.second.model
    models = [("first model", first), ("second model", second)] if first != second else [("model", first)]
    return [
        *text_tables(comparison_tables(comparison)),
        "",
        *facts((name, model_text(model)) for name, model in models),
    ]


def head_effect_lines(effects: HeadEffects, shown: int) -> Lines:
    """The heads that matter most to a prediction."""
    return [*text_tables(head_effect_tables(effects, shown)), "", *facts([("model", model_text(effects.model))])]
