"""An attribution as text for people, one table a part."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_attribution.cli.output import Lines, facts, model_text, text_tables, visible
from neuron_attribution.cli.sampling import generation_text
from neuron_attribution.display.attributions import aggregate_tables, explanation_tables, token_table
from neuron_attribution.display.common import without_common
from neuron_attribution.display.words import coverage_text, timings_text
from neuron_attribution.results import AttributeResult, Explanation, Token

__all__ = ["attribution_lines", "coverage_text", "explanation_lines", "timings_text"]


def attribution_lines(result: AttributeResult, *, hide_common: bool = False) -> Lines:
    """The whole attribution; on demand without neurons that are as strong whatever is asked."""
    result, hidden = without_common(result) if hide_common else (result, 0)
    lines = text_tables([token_table(result.tokens)])
    if result.aggregate is not None:
        lines += ["", *text_tables(aggregate_tables(result.aggregate, result.tokens))]
    for explanation in result.explanations:
        lines += ["", *explanation_lines(explanation, result.tokens)]
    notes = [("note", text) for text in map(space_text, result.explanations) if text]
    if hidden:
        notes.append(
            ("note", f"{hidden} neurons are hidden that are as strong in a quarter of the server's contexts, or more")
        )
    if result.generation is not None:
        notes.append(("generated", generation_text(result.generation)))
    foot = [*notes, ("model", model_text(result.model)), ("time", timings_text(result.timings))]
    return [*lines, "", *facts(foot)]


def space_text(explanation: Explanation) -> str:
    """Whether a space was forgotten before the target, as it seems; empty where none was."""
    target, spaced = explanation.target, explanation.spaced_target
    if spaced is None:
        return ""
    wanted, given = visible(spaced.token.text), visible(target.token.text)
    return f"{given} ranks {target.rank}, {wanted} ranks {spaced.rank}: --target {wanted} explains that one"


def explanation_lines(explanation: Explanation, tokens: Sequence[Token]) -> Lines:
    """The explanation of one prediction: every part that was asked for."""
    return text_tables(explanation_tables(explanation, tokens))
