"""What tasks put into one forward pass, where they find it there, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.requests import AttributeOptions, Intervention, Part
from neuron_attribution.results import AggregateExplanation, Explanation, InterventionResult, PredictionState

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.capture.edits import Placed
from neuron_attribution_server.model.engine.explanation.rows import Row, Whole
from neuron_attribution_server.tasks.answers import AttributeOutcome, InterveneOutcome, Outcome
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask

PassTask = AttributeTask | InterveneTask


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """An attribution's explanations, and that of its tokens together."""

    explanations: tuple[Explanation, ...]
    aggregate: AggregateExplanation | None


Answer = Explained | tuple[PredictionState, tuple[InterventionResult, ...]] | NeuronAttributionError | None


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
    """The sequences of a task: one, but for interventions and another answer."""
    if isinstance(task, AttributeTask):
        positions = tuple(token.position for token in task.explained)
        placed = [(task.token_ids, positions)]
        if task.contrast_answer:
            first = len(task.prompt) - 1
            positions = tuple(range(first, first + len(task.contrast_answer)))
            placed.append((task.prompt + task.contrast_answer, positions))
        return [PassSequence(ids, at, Placed(task.options.interventions, at)) for ids, at in placed]
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
    """One row per explained token, those of another answer last.

    What generates may end its text before every scale is used.
    """
    last = len(task.prompt) - 1
    other = [ExplainedToken(last + index, token) for index, token in enumerate(task.contrast_answer)]
    tokens = [(place.sequence, token) for token in task.explained] + [(place.sequence + 1, token) for token in other]
    scales = task.options.final_norm_scales or (None,) * len(tokens)
    whole = Whole(task) if task.options.aggregate else None
    rows = []
    for index, ((sequence, token), scale) in enumerate(zip(tokens, scales, strict=False)):
        explained = index < task.explanations
        rows.append(
            Row(
                place.rows.start + index,
                sequence,
                token.position,
                token.target,
                task.contrast,
                task.options if explained else _summed_alone(task.options),
                task.reproducible,
                token.spaced,
                scale,
                whole,
                explained,
            )
        )
    return rows


def _summed_alone(options: AttributeOptions) -> AttributeOptions:
    """What is asked of a row that has no explanation of its own: what its sums are made of."""
    heads = {Part.HEADS} if options.parts & {Part.HEADS, Part.HEAD_POSITIONS} else set()
    parts = frozenset(heads | (options.parts & {Part.LAYERS}))
    return replace(options, parts=parts, projection_top_k=0, position_projection_top_k=0, query_from=())


def outcome_of(task: PassTask, answer: Answer, shared: dict[str, Any], seconds: SearchSeconds) -> Outcome:
    """A task's outcome: its own answer, and what it shares with the rest of its batch."""
    if isinstance(answer, NeuronAttributionError):
        return answer
    if isinstance(task, AttributeTask):
        found = cast(Explained, answer)
        return AttributeOutcome(
            token_ids=task.token_ids,
            explanations=found.explanations,
            aggregate=found.aggregate,
            bound=seconds.bound,
            exact=seconds.exact,
            **shared,
        )
    before, results = cast(tuple[PredictionState, tuple[InterventionResult, ...]], answer)
    return InterveneOutcome(before=before, results=results, **shared)
