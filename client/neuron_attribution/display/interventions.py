"""What interventions did, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_attribution.display.table import TextTable
from neuron_attribution.display.words import number, token_text, visible
from neuron_attribution.results import InterveneResult, PredictionState

COLUMNS = ("", "token", ">probability", ">log probability", ">rank", ">KL")


def state_names(result: InterveneResult) -> list[str]:
    """Before, and after each set by its number."""
    several = len(result.results) > 1
    return ["before", *(f"after {number}" if several else "after" for number in range(1, len(result.results) + 1))]


def intervention_tables(result: InterveneResult, names: Sequence[str] = ()) -> list[TextTable]:
    """The watched token before and after each set, and the most probable tokens; `names` are those of the states."""
    names = names or state_names(result)
    states = [result.before, *(each.after for each in result.results)]
    distances = ["", *(number(each.kl_divergence) for each in result.results)]
    goes_on = any(state.continuation for state in states)
    rows = [
        (name, *_target_cells(state), far, *([_continuation(state)] if goes_on else ()))
        for name, state, far in zip(names, states, distances, strict=True)
    ]
    probable = [
        TextTable(
            f"most probable next tokens, {name}",
            ("token", ">probability"),
            [(token_text(item.token), number(item.probability)) for item in state.predictions],
        )
        for name, state in zip(names, states, strict=True)
    ]
    return [TextTable("the watched token", (*COLUMNS, *(["goes on"] if goes_on else ())), rows), *probable]


def _continuation(state: PredictionState) -> str:
    return visible("".join(token.text for token in state.continuation)) if state.continuation else ""


def _target_cells(state: PredictionState) -> tuple[str, ...]:
    target = state.target
    return token_text(target.token), number(target.probability), number(target.log_probability), str(target.rank)
