"""The worker: what runs the batches. A process of its own in production, a thread in tests; one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from neuron_attribution import convert
from neuron_attribution.errors import InternalError, NeuronAttributionError
from neuron_attribution.results import ProjectNeuronResult, Timings

from neuron_attribution_server.attribution.checkpoints import checked
from neuron_attribution_server.out_of_memory import does_not_fit, free_caches, is_out_of_memory
from neuron_attribution_server.reports import BatchReport
from neuron_attribution_server.tasks import (
    Answer,
    AttributeOutcome,
    AttributeTask,
    Engine,
    ExplainedToken,
    ModelFacts,
    Outcome,
    PackedAttribution,
    PackedProjections,
    ProjectOutcome,
    Task,
)

EngineFactory = Callable[[], Engine]

WARM_UP = AttributeTask(token_ids=(0,), explained=(ExplainedToken(0),))
"""One tiny task: the first one is slow, and shows whether the model works at all."""

_log = logging.getLogger(__name__)


def unheard() -> None:
    """Nobody asks."""


class Listener:
    """What a worker asks and tells of a batch while it runs. This one wants every answer and hears nothing."""

    def wanted(self, _place: int) -> bool:
        """Whether somebody still waits for a task, by its place in the batch."""
        return True

    def begins(self, stop: Callable[[], None]) -> None:
        """Hear that a device has the batch. `stop` ends it at its next checkpoint, when nobody waits for it."""

    def computed(self) -> None:
        """Hear that the batch is computed and its answers are being written."""

    def reported(self, report: BatchReport) -> None:
        """Hear what happened while it ran, or while a part of it ran again; this may come after the answers."""


NOBODY = Listener()


class ModelLoadError(Exception):
    """The model could not be loaded; the message is one readable line."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What runs on one device: whether it is live, how often it was restarted, and its process, if it has one."""

    device: str
    is_live: bool
    restarts: int = 0
    pid: int | None = None


class Worker(Protocol):
    """Loads one model and runs batches on it, `capacity` of them at a time."""

    @property
    def capacity(self) -> int:
        """How many batches can run at the same time."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether a batch could run now: the model is loaded and warm somewhere."""
        ...

    def devices(self) -> Sequence[DeviceState]:
        """The state of each device, once its model is loaded. Any thread may ask."""
        ...

    async def changed(self) -> None:
        """Wait until `is_live` changes."""
        ...

    async def start(self) -> ModelFacts:
        """Load the model and warm it up. Raises ModelLoadError."""
        ...

    async def ready(self) -> None:
        """Wait while there is no live worker but one to come."""
        ...

    async def run(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one batch; outcomes in the order of the tasks. Raises UnavailableError where the worker has died.

        What is run a second time, is only where it is still wanted.
        """
        ...

    async def interrupt(self, tasks: Sequence[Task], listener: Listener = NOBODY) -> list[Answer]:
        """Run one short batch at the next checkpoint of a batch that runs, which goes on after it. As `run` else."""
        ...

    async def ended(self) -> None:
        """Wait until the worker ends by itself, which it should not."""
        ...

    async def stop(self) -> None:
        """End the worker, whatever it is doing."""
        ...


def check_warm_up(answers: Sequence[Answer]) -> None:
    """Raise ModelLoadError where the warm-up task failed."""
    [answer] = answers
    if isinstance(answer, NeuronAttributionError):
        raise ModelLoadError(f"the model is loaded but fails: {answer.message}")


def run_batch(
    engine: Engine, tasks: Sequence[Task], report: BatchReport, computed: Callable[[], None] = unheard
) -> list[Answer]:
    """Run one batch and note in its report what happened; call `computed` when its answers are about to be written.

    Where the engine itself fails, every task fails and the worker lives on. Where memory runs out, each half is tried
    by itself, down to the single tasks that cannot be run at all.
    """
    try:
        return _run_whole(engine, tasks, report, computed)
    except Exception as error:
        if not is_out_of_memory(error):
            _log.exception("a batch of %d tasks failed", len(tasks))
            return failed_batch(error, tasks)
        _log.warning("no memory for a batch of %d tasks: %s", len(tasks), str(error))
    # Out here the error is gone, and with it the frames whose tensors it kept.
    free_caches()
    if len(tasks) == 1:
        report.out_of_memory_failures += 1
        return [does_not_fit()]
    report.out_of_memory_splits += 1
    middle = len(tasks) // 2
    return [*run_batch(engine, tasks[:middle], report), *run_batch(engine, tasks[middle:], report)]


def failed_batch(error: Exception, tasks: Sequence[Task]) -> list[Answer]:
    """The same internal error for every task. Its message is for the log: callers see a request id only."""
    return [InternalError(f"the batch failed with {type(error).__name__}: {error}") for _ in tasks]


def _run_whole(
    engine: Engine, tasks: Sequence[Task], report: BatchReport, computed: Callable[[], None]
) -> list[Answer]:
    outcomes = engine.run(tasks)
    if len(outcomes) != len(tasks):
        raise RuntimeError(f"the engine gave {len(outcomes)} outcomes for {len(tasks)} tasks")
    computed()
    report.ran(engine.facts.device, outcomes)
    return [_packed(engine.facts, outcome) for outcome in outcomes]


def _packed(facts: ModelFacts, outcome: Outcome) -> Answer:
    if isinstance(outcome, ProjectOutcome):
        result = ProjectNeuronResult(facts.identity, outcome.projections)
        return PackedProjections(convert.project_neuron_result_to_proto(result).SerializeToString())
    if not isinstance(outcome, AttributeOutcome):
        return outcome
    timings = Timings(
        forward=outcome.forward,
        scoring=outcome.scoring,
        batch_requests=outcome.batch_requests,
        batch_tokens=outcome.batch_tokens,
    )
    return PackedAttribution(outcome.token_ids, _packed_explanations(facts, outcome), timings)


def _packed_explanations(facts: ModelFacts, outcome: AttributeOutcome) -> bytes:
    """The response, serialized, with a checkpoint at every neuron: there may be thousands of large projections."""
    message = convert.explanations_to_proto(facts.identity, outcome.explanations, checked)
    return message.SerializeToString()
