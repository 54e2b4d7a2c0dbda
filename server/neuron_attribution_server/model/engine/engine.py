"""One batch: capture, score, answer.

1. generate where a task asks for it
2. a right-padded forward pass for the whole batch, everything recorded; several where one would hold up what is short
3. the explained tokens become rows; rows that share their objective and method are scored together
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.generation import Generation
from neuron_attribution.requests import Part
from neuron_attribution.results import (
    AggregateExplanation,
    Explanation,
    InterventionResult,
    ModelSizes,
    NeuronProjection,
    PredictionState,
)
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.search.value_search import LazyRanges
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows, Kept
from neuron_attribution_server.model.capture.edits import Edits, Placed
from neuron_attribution_server.model.engine.explanation.activity import Activity
from neuron_attribution_server.model.engine.explanation.explainer import Explainer
from neuron_attribution_server.model.engine.explanation.finite import are_finite, check_finite, check_scales
from neuron_attribution_server.model.engine.explanation.intervening import before_and_after
from neuron_attribution_server.model.engine.explanation.keys import check_subkey
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.explanation.rows import Row
from neuron_attribution_server.model.engine.generation import Continuation, generate, generate_several
from neuron_attribution_server.model.engine.passes import (
    Answer,
    Explained,
    PassSequence,
    PassTask,
    check_units,
    outcome_of,
    places_of,
    rows_of,
    sequences_of,
)
from neuron_attribution_server.model.engine.tracer import Tracer
from neuron_attribution_server.model.tracing.support import check_traceable
from neuron_attribution_server.tasks.answers import AttributeOutcome, Outcome, ProjectOutcome
from neuron_attribution_server.tasks.model_facts import NOTHING_TO_PREPARE, ModelFacts, Preparation
from neuron_attribution_server.tasks.tasks import (
    AttributeTask,
    ExplainedToken,
    InterveneTask,
    ProjectTask,
    Task,
    TraceTask,
)

PASS_TOKENS = {"cpu": 1024}
OTHER_PASS_TOKENS = 16_384
"""Padded tokens of one forward pass, by device, but for a longer sequence: nothing short can go first meanwhile."""
KEPT_BYTES = 1 << 27
"""Memory for the coefficients of every FFN neuron at every position of a pass."""
SCORING_BYTES = 1 << 30
"""Memory for the base states' log probabilities of the rows scored together."""

LAST_STATES = Kept(streams=False, sources=False)
"""What is kept of a pass of which only predictions are read."""


def kept_tokens(view: ModelView) -> int:
    """Padded tokens of a pass whose coefficients are kept: so many as take `KEPT_BYTES`, of a model in float32."""
    sizes = view.sizes
    neurons = sizes.layers * (sizes.ffn_width + sizes.experts * sizes.expert_width)
    return KEPT_BYTES // (neurons * torch.float32.itemsize) if view.dtype is torch.float32 else 0


def bytes_per_row(sizes: ModelSizes) -> int:
    """What the base states' log probabilities of one explained token take."""
    return (2 * sizes.layers + 1) * sizes.vocabulary * torch.float32.itemsize


def rows_at_once(sizes: ModelSizes) -> int:
    """How many explained tokens are scored together."""
    return max(1, SCORING_BYTES // bytes_per_row(sizes))


class Engine:
    """A loaded model that explains batches of tasks. Calls must not overlap."""

    def __init__(
        self,
        view: ModelView,
        weights: Weights,
        facts: ModelFacts,
        token_text: Callable[[int], str],
        ranges: LazyRanges,
        activity: Activity | None = None,
        preparation: Preparation = NOTHING_TO_PREPARE,
    ) -> None:
        self.facts = facts
        self.preparation = preparation
        self._view = view
        self._unembedding = weights.unembedding
        self._projector = Projector(view, weights.unembedding, token_text)
        self._pass_tokens = PASS_TOKENS.get(view.device.type, OTHER_PASS_TOKENS)
        self._explainer = Explainer(view, weights, self._projector, ranges, activity)
        self._tracer = Tracer(view, weights.unembedding, self._projector, activity)

    @torch.inference_mode()
    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch; a failed task's error stands in its place."""
        outcomes: dict[int, Outcome] = {}
        batch: dict[int, PassTask] = {}
        generations: dict[int, Generation | None] = {}
        traces: dict[int, TraceTask] = {}
        for index, task in enumerate(tasks):
            try:
                self._check(task)
                if isinstance(task, ProjectTask):
                    outcomes[index] = self._project(task)
                elif isinstance(task, TraceTask):
                    traces[index] = task
                elif isinstance(task, AttributeTask) and task.generate:
                    batch[index], generations[index] = self._with_generation(task)
                else:
                    batch[index] = task
            except NeuronAttributionError as error:
                outcomes[index] = error
        for together in checked(self._batches(batch)):
            found = self._run([batch[index] for index in together])
            outcomes |= dict(zip(together, found, strict=True))
        for index, trace in checked(traces.items()):
            outcomes[index] = self._trace(trace)
        for index, generation in generations.items():
            outcome = outcomes[index]
            if isinstance(outcome, AttributeOutcome):
                outcomes[index] = replace(outcome, generation=generation)
        return [outcomes[index] for index in range(len(tasks))]

    def _batches(self, tasks: Mapping[int, PassTask]) -> list[list[int]]:
        """What shares a forward pass: as much as one may take, those of like lengths.

        Nothing does where a longer sequence would change what a shorter one means, and nothing beside what is to be
        the same to the last bit, where recurrent mixers round otherwise in a longer batch.
        """
        passes: list[list[int]] = []
        sequences, is_whole = 0, True
        for index in sorted(tasks, key=lambda index: tasks[index].length):
            task = tasks[index]
            sequences += task.sequences
            alone = self._view.depends_on_length or (self._view.is_recurrent and _is_reproducible(task))
            if is_whole or alone or sequences * task.length > self._pass_tokens:
                passes.append([])
                sequences = task.sequences
            passes[-1].append(index)
            is_whole = alone
        return [sorted(together) for together in passes]

    def _check(self, task: Task) -> None:
        """Refuse what only the model itself knows to be impossible, before it shares a batch."""
        if isinstance(task, InterveneTask):
            for number, interventions in enumerate(task.sets):
                check_units(self._view, interventions, f"sets[{number}].interventions")
            return
        options = task if isinstance(task, ProjectTask) else task.options
        check_subkey(self._view, options.subkey)
        if isinstance(task, TraceTask):
            check_traceable(self._view)
            return
        named = {f"neurons[{place}]": neuron for place, neuron in enumerate(options.neurons)}
        if isinstance(task, AttributeTask):
            sources = enumerate(task.options.query_from)
            named |= {f"query_from[{place}].neuron": source.neuron for place, source in sources}
            check_units(self._view, task.options.interventions, "interventions")
        for field, neuron in named.items():
            self._view.unit(neuron, field)
        if isinstance(task, ProjectTask) and task.through is not None:
            self._view.check_heads(task.through.layer, "through")

    def _project(self, task: ProjectTask) -> ProjectOutcome:
        found = self._projector.neurons(task.neurons, task.side, task.subkey, task.through, task.top_k)
        return ProjectOutcome(tuple(NeuronProjection(*pair) for pair in zip(task.neurons, found, strict=True)))

    def _trace(self, task: TraceTask) -> Outcome:
        try:
            return self._tracer.trace(task, self._synchronize)
        except NeuronAttributionError as error:
            return error

    def _with_generation(self, task: AttributeTask) -> tuple[AttributeTask, Generation | None]:
        """The task with its generated tokens as the completion to explain, and how they ended."""
        first = len(task.token_ids) - 1
        placed = Placed(task.options.interventions, tuple(range(first, first + task.generate)))
        found = generate(self._view, task.token_ids, task.generate, placed, task.sampling, task.stops)
        explained = tuple(ExplainedToken(first + offset, token) for offset, token in enumerate(found.tokens))
        whole = replace(task, token_ids=(*task.token_ids, *found.tokens), explained=explained, generate=0)
        return whole, found.generation

    def _run(self, tasks: Sequence[PassTask]) -> list[Outcome]:
        """One forward pass, and what each task reads of it."""
        if len(tasks) == 1 and isinstance(tasks[0], InterveneTask):
            return [self._intervene(tasks[0])]
        continuations = [self._continuations(task) if isinstance(task, InterveneTask) else [] for task in tasks]
        began, start = time.time(), time.perf_counter()
        seconds = SearchSeconds()
        sequences = [each for task in tasks for each in sequences_of(task)]
        captured = self._capture(sequences, self._kept(tasks, sequences))
        self._synchronize()
        middle = time.perf_counter()
        answers = self._answers(captured, tasks, continuations, seconds)
        self._synchronize()
        end = time.perf_counter()
        tokens = sum(len(sequence.token_ids) for sequence in sequences)
        shared = {"forward": middle - start, "scoring": end - middle, "started": began}
        shared |= {"batch_requests": len(tasks), "batch_tokens": tokens}
        return [outcome_of(task, answer, shared, seconds) for task, answer in zip(tasks, answers, strict=True)]

    def _intervene(self, task: InterveneTask) -> Outcome:
        """The same for one task alone, whose sequences may take several passes."""
        continuation = self._continuations(task)
        began, start = time.time(), time.perf_counter()
        sequences = sequences_of(task)
        together = max(1, self._pass_tokens // task.length)
        passes = [sequences[first : first + together] for first in range(0, len(sequences), together)]
        finals = torch.cat([_final_states(self._capture(each, LAST_STATES)) for each in checked(passes)])
        self._synchronize()
        middle = time.perf_counter()
        try:
            check_finite(are_finite(self._unembedding, finals), task)
            answer: Answer = self._read(task, finals, continuation)
        except NeuronAttributionError as error:
            answer = error
        shared = {"forward": middle - start, "scoring": time.perf_counter() - middle, "started": began}
        shared |= {"batch_requests": 1, "batch_tokens": sum(len(each.token_ids) for each in sequences)}
        return outcome_of(task, answer, shared, SearchSeconds())

    def _continuations(self, task: InterveneTask) -> list[Continuation]:
        """What the plain sequence and each set go on with, where that is asked for."""
        sequences = [sequence.placed for sequence in sequences_of(task)]
        if not task.generate:
            return [Continuation() for _ in sequences]
        return generate_several(self._view, task.token_ids, task.generate, sequences, task.sampling, task.stops)

    def _kept(self, tasks: Sequence[PassTask], sequences: Sequence[PassSequence]) -> Kept:
        """Of every position what any task reads: a long text would take several times what its pass alone takes."""
        asked = [task for task in tasks if isinstance(task, AttributeTask)]
        return Kept(
            streams=any(task.reads_streams for task in asked),
            sources=any(task.reads_sources for task in asked),
            coefficients=self._keeps_coefficients(tasks, sequences),
        )

    def _keeps_coefficients(self, tasks: Sequence[PassTask], sequences: Sequence[PassSequence]) -> bool:
        """Whether every FFN neuron's coefficients at every position are kept: query neurons ask for those of many.

        In float32 only: what is computed again is not rounded to half precision, and no answer may depend on its batch.
        """
        is_asked = any(
            isinstance(task, AttributeTask) and Part.QUERY_FFN_NEURONS in task.options.parts for task in tasks
        )
        return is_asked and len(sequences) * max(task.length for task in tasks) <= kept_tokens(self._view)

    def _capture(self, sequences: Sequence[PassSequence], kept: Kept) -> CapturedStates:
        rows = ExplainedRows.from_counts([sequence.positions for sequence in sequences], self._view.device)
        edits = Edits(self._view, [sequence.placed for sequence in sequences])
        token_ids = [sequence.token_ids for sequence in sequences]
        return capture(self._view, token_ids, rows, edits or None, kept)

    def _answers(
        self,
        captured: CapturedStates,
        tasks: Sequence[PassTask],
        continuations: Sequence[Sequence[Continuation]],
        seconds: SearchSeconds,
    ) -> list[Answer]:
        """Each task's part of the pass; the explained tokens of all attributions are scored together."""
        finals = _final_states(captured)
        finite = are_finite(self._unembedding, finals)
        places = places_of(tasks)
        answers: list[Answer] = []
        for task, place, continuation in zip(tasks, places, continuations, strict=True):
            try:
                check_finite(finite[place.rows], task)
                check_scales(task, self._unembedding.scale(finals[place.rows]))
                answers.append(self._read(task, finals[place.rows], continuation))
            except NeuronAttributionError as error:
                answers.append(error)
        attributions = [
            (task, place)
            for task, place, answer in zip(tasks, places, answers, strict=True)
            if isinstance(task, AttributeTask) and not isinstance(answer, NeuronAttributionError)
        ]
        wanted = [rows_of(task, place) for task, place in attributions]
        explained = iter(self._explain(captured, wanted, seconds))
        return [
            next(explained) if isinstance(task, AttributeTask) and answer is None else answer
            for task, answer in zip(tasks, answers, strict=True)
        ]

    def _read(
        self, task: PassTask, finals: Tensor, continuation: Sequence[Continuation]
    ) -> tuple[PredictionState, tuple[InterventionResult, ...]] | None:
        """The predictions of interventions; an attribution's explanations come later, together."""
        if isinstance(task, InterveneTask):
            return before_and_after(
                self._projector,
                self._unembedding,
                finals,
                task.target,
                continuation,
                freeze_scale=task.freeze_scale,
            )
        return None

    def _explain(
        self, captured: CapturedStates, tasks: Sequence[Sequence[Row]], seconds: SearchSeconds
    ) -> list[Explained]:
        """What is asked of the rows of each task."""
        groups: dict[object, list[Sequence[Row]]] = defaultdict(list)
        for rows in filter(None, tasks):
            options = rows[0].options
            method = options.scoring_method, options.include_final_norm_bias
            for unit in _units(rows):
                alone = unit[0].index if unit[0].alone else None
                groups[unit[0].contrast is None, *method, alone].append(unit)
        explained: dict[int, Explanation] = {}
        aggregates: dict[int, AggregateExplanation] = {}
        for group in groups.values():
            for chunk in _chunks(group, rows_at_once(self._view.sizes)):
                found = self._explainer.explain(captured, chunk, seconds)
                explained |= found.explanations
                aggregates |= found.aggregates
        return [
            Explained(
                tuple(explained[row.index] for row in rows if row.explained),
                aggregates.get(rows[0].index) if rows else None,
            )
            for rows in tasks
        ]

    def _synchronize(self) -> None:
        if self._view.device.type == "cuda":
            torch.cuda.synchronize(self._view.device)


def _units(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The rows of a task that are not parted: all of them where they are taken together, else each."""
    return [rows] if rows[0].whole else [[row] for row in rows]


def _chunks(units: Sequence[Sequence[Row]], most: int) -> Iterator[list[Row]]:
    """Rows that are scored together, at most so many unless one unit has more."""
    chunk: list[Row] = []
    for unit in units:
        if chunk and len(chunk) + len(unit) > most:
            yield chunk
            chunk = []
        chunk = [*chunk, *unit]
    yield chunk


def _is_reproducible(task: PassTask) -> bool:
    return isinstance(task, AttributeTask) and task.reproducible


def _final_states(captured: CapturedStates) -> Tensor:
    """What the final norm reads at each row. [rows, d]"""
    return captured.of_rows(captured.inputs[-1]).float()
