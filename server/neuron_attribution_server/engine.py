"""One batch: capture, score, answer.

1. greedily generate where a task asks for it
2. one right-padded forward pass for the whole batch, everything recorded
3. the explained tokens become rows; rows that share their objective and method are scored together
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.results import Explanation, ModelSizes, NeuronProjection

from neuron_attribution_server.architectures.model_view import ModelView
from neuron_attribution_server.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.attribution.states import Weights
from neuron_attribution_server.attribution.value_search import LazyRanges
from neuron_attribution_server.capture import capture
from neuron_attribution_server.captured import CapturedStates, ExplainedRows
from neuron_attribution_server.explanation.explainer import Explainer
from neuron_attribution_server.explanation.keys import check_subkey
from neuron_attribution_server.explanation.predictions import own_log_probabilities
from neuron_attribution_server.explanation.projector import Projector
from neuron_attribution_server.explanation.rows import Row
from neuron_attribution_server.generation import generate
from neuron_attribution_server.tasks import (
    AttributeOutcome,
    AttributeTask,
    ExplainedToken,
    ModelFacts,
    Outcome,
    ProjectOutcome,
    ProjectTask,
    Task,
)

SCORING_BYTES = 1 << 30
"""Memory for the base states' log probabilities of the rows scored together."""


def bytes_per_row(sizes: ModelSizes) -> int:
    """What the base states' log probabilities of one explained token take."""
    return (2 * sizes.layers + 1) * sizes.vocabulary * torch.float32.itemsize


def rows_at_once(sizes: ModelSizes) -> int:
    """How many explained tokens are scored together."""
    return max(1, SCORING_BYTES // bytes_per_row(sizes))


class Engine:
    """A loaded model that explains batches of tasks. Calls must not overlap."""

    def __init__(
        self, view: ModelView, weights: Weights, facts: ModelFacts, token_text: Callable[[int], str], ranges: LazyRanges
    ) -> None:
        self.facts = facts
        self._view = view
        self._unembedding = weights.unembedding
        self._projector = Projector(view, weights.unembedding, token_text)
        self._explainer = Explainer(view, weights, self._projector, ranges)

    @torch.inference_mode()
    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch; a failed task's error stands in its place."""
        outcomes: dict[int, Outcome] = {}
        batch: dict[int, AttributeTask] = {}
        for index, task in enumerate(tasks):
            try:
                self._check(task)
                if isinstance(task, ProjectTask):
                    outcomes[index] = self._project(task)
                else:
                    batch[index] = self._with_generation(task)
            except NeuronAttributionError as error:
                outcomes[index] = error
        for together in self._batches(batch):
            found = self._attribute([batch[index] for index in together])
            outcomes |= dict(zip(together, found, strict=True))
        return [outcomes[index] for index in range(len(tasks))]

    def _batches(self, tasks: Collection[int]) -> list[list[int]]:
        """What shares a forward pass: everything, but where a longer sequence would change what a shorter one means."""
        if self._view.depends_on_length:
            return [[index] for index in tasks]
        return [list(tasks)] if tasks else []

    def _check(self, task: Task) -> None:
        """Refuse what only the model itself knows to be impossible, before it shares a batch."""
        options = task.options if isinstance(task, AttributeTask) else task
        check_subkey(self._view, options.subkey)
        for neuron in options.neurons:
            if isinstance(neuron, FfnNeuron):
                self._view.ffn_unit(neuron)

    def _project(self, task: ProjectTask) -> ProjectOutcome:
        found = self._projector.neurons(task.neurons, task.side, task.subkey, task.through, task.top_k)
        return ProjectOutcome(tuple(NeuronProjection(*pair) for pair in zip(task.neurons, found, strict=True)))

    def _with_generation(self, task: AttributeTask) -> AttributeTask:
        """The task with its generated tokens as the completion to explain."""
        if not task.generate:
            return task
        generated = generate(self._view, task.token_ids, task.generate)
        first = len(task.token_ids) - 1
        explained = tuple(ExplainedToken(first + offset, token) for offset, token in enumerate(generated))
        return replace(task, token_ids=(*task.token_ids, *generated), explained=explained, generate=0)

    def _attribute(self, tasks: Sequence[AttributeTask]) -> list[AttributeOutcome]:
        began, start = time.time(), time.perf_counter()
        seconds = SearchSeconds()
        captured = self._capture(tasks)
        self._synchronize()
        middle = time.perf_counter()
        explanations = self._explain(captured, self._rows(captured, tasks), seconds)
        self._synchronize()
        end = time.perf_counter()
        parts = iter(explanations)
        tokens = sum(len(task.token_ids) for task in tasks)
        return [
            AttributeOutcome(
                task.token_ids,
                tuple(next(parts) for _ in task.explained),
                middle - start,
                end - middle,
                len(tasks),
                tokens,
                began,
                seconds.bound,
                seconds.exact,
            )
            for task in tasks
        ]

    def _capture(self, tasks: Sequence[AttributeTask]) -> CapturedStates:
        device = self._view.device
        positions = [[token.position for token in task.explained] for task in tasks]
        rows = ExplainedRows.from_counts(positions, device)
        return capture(self._view, [task.token_ids for task in tasks], rows)

    def _rows(self, captured: CapturedStates, tasks: Sequence[AttributeTask]) -> list[Row]:
        """One row per explained token; the model's own most probable token where no target is given."""
        own = self._own_tokens(captured, one_by_one=any(task.reproducible for task in tasks))
        explained = [(sequence, task, token) for sequence, task in enumerate(tasks) for token in task.explained]
        return [
            Row(
                index,
                sequence,
                token.position,
                own[index] if token.target is None else token.target,
                task.contrast,
                task.options,
                task.reproducible,
            )
            for index, (sequence, task, token) in enumerate(explained)
        ]

    def _own_tokens(self, captured: CapturedStates, *, one_by_one: bool) -> list[int]:
        finals = captured.rows.of(captured.inputs[-1]).float()
        parts = finals.split(1) if one_by_one else (finals,)
        return [int(token) for part in parts for token in own_log_probabilities(self._unembedding, part).argmax(-1)]

    def _explain(self, captured: CapturedStates, rows: Sequence[Row], seconds: SearchSeconds) -> list[Explanation]:
        groups: dict[object, list[Row]] = defaultdict(list)
        for row in rows:
            options = row.options
            alone = row.index if row.alone else None
            groups[row.contrast is None, options.scoring_method, options.include_final_norm_bias, alone].append(row)
        together = rows_at_once(self._view.sizes)
        explained: dict[int, Explanation] = {}
        for group in groups.values():
            for start in range(0, len(group), together):
                chunk = group[start : start + together]
                found = self._explainer.explain(captured, chunk, seconds)
                explained |= {row.index: explanation for row, explanation in zip(chunk, found, strict=True)}
        return [explained[row.index] for row in rows]

    def _synchronize(self) -> None:
        if self._view.device.type == "cuda":
            torch.cuda.synchronize(self._view.device)
