"""What tasks put into one forward pass, where they find it there, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.requests import Intervention
from neuron_attribution.results import Explanation, InterventionResult, PredictionState

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.capture.edits import Placed
from neuron_attribution_server.model.engine.explanation.rows import Row
from neuron_attribution_server.tasks.answers import AttributeOutcome, InterveneOutcome, Outcome
from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask

PassTask = AttributeTask | InterveneTask
Answer = (
    tuple[Explanation, ...] | tuple[PredictionState, tuple[InterventionResult, ...]] | NeuronAttributionError | None
)


@dataclass(frozen=True, slots=True)
class PassSequence:
    """One sequence of a batch: its tokens, the positions whose states are read, and what is intervened in."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    placed: Placed


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task is in a batch: its first sequence, and its rows."""

    sequence: int
    rows: slice


def check_units(view: ModelView, interventions: Sequence[Intervention], field: str) -> None:
    """Refuse neurons, heads and parts that a layer, which may have less than others, does not have."""
    for number, intervention in enumerate(interventions):
        for place, neuron in enumerate(intervention.neurons):
            view.unit(neuron, f"{field}[{number}].neurons[{place}]")
        for place, head in enumerate(intervention.heads):
            view.check_heads(head.layer, f"{field}[{number}].heads[{place}]")
        for place, part in enumerate(intervention.layers):
            view.check_part(part, f"{field}[{number}].layers[{place}]")


def sequences_of(task: PassTask) -> list[PassSequence]:
    """The sequences of a task: one, but for interventions."""
    if isinstance(task, AttributeTask):
        positions = tuple(token.position for token in task.explained)
        return [PassSequence(task.token_ids, positions, Placed(task.options.interventions, positions))]
    last = (len(task.token_ids) - 1,)
    return [PassSequence(task.token_ids, last, Placed(interventions, last)) for interventions in ((), *task.sets)]


def places_of(tasks: Sequence[PassTask]) -> list[Place]:
    """Where each task's sequences and rows are in the batch."""
    places, sequences, rows = [], 0, 0
    for task in tasks:
        places.append(Place(sequences, slice(rows, rows + task.rows)))
        sequences, rows = sequences + task.sequences, rows + task.rows
    return places


def rows_of(task: AttributeTask, place: Place) -> list[Row]:
    """One row per explained token.

    What generates may end its text before every scale is used.
    """
    scales = task.options.final_norm_scales or (None,) * len(task.explained)
    return [
        Row(
            index,
            place.sequence,
            token.position,
            token.target,
            task.contrast,
            task.options,
            task.reproducible,
            token.spaced,
            scale,
        )
        for index, (token, scale) in enumerate(zip(task.explained, scales, strict=False), place.rows.start)
    ]


def outcome_of(task: PassTask, answer: Answer, shared: dict[str, Any], seconds: SearchSeconds) -> Outcome:
    """A task's outcome: its own answer, and what it shares with the rest of its batch."""
    if isinstance(answer, NeuronAttributionError):
        return answer
    if isinstance(task, AttributeTask):
        explanations = cast(tuple[Explanation, ...], answer)
        return AttributeOutcome(
            token_ids=task.token_ids, explanations=explanations, bound=seconds.bound, exact=seconds.exact, **shared
        )
    before, results = cast(tuple[PredictionState, tuple[InterventionResult, ...]], answer)
    return InterveneOutcome(before=before, results=results, **shared)
