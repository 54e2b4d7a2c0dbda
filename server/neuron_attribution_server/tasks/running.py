"""Runs one batch with an engine: what fails, fails as an answer, and answers are written as bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from neuron_attribution import convert
from neuron_attribution.convert.rankings import Walk
from neuron_attribution.errors import InternalError
from neuron_attribution.results import ProjectNeuronResult, Timings

from neuron_attribution_server.tasks.answers import (
    Answer,
    AttributeOutcome,
    Outcome,
    PackedAttribution,
    PackedProjections,
    PackedTrace,
    ProjectOutcome,
    TraceOutcome,
)
from neuron_attribution_server.tasks.model_facts import Engine, ModelFacts
from neuron_attribution_server.tasks.out_of_memory import does_not_fit, free_caches, is_out_of_memory
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, Task

EngineFactory = Callable[[], Engine]
"""Loads a model. Where it has a method `prepare`, that does what takes time and needs no model."""

WARM_UP = AttributeTask(token_ids=(0,), explained=(ExplainedToken(0),))
"""One tiny task: the first one is slow, and shows whether the model works at all."""

_log = logging.getLogger(__name__)


def do_nothing() -> None:
    """What is called where nobody wants to hear."""


def run_batch(
    engine: Engine,
    tasks: Sequence[Task],
    report: BatchReport,
    computed: Callable[[], None] = do_nothing,
    walk: Walk = iter,
) -> list[Answer]:
    """Run one batch and note in its report what happened; call `computed` when its answers are about to be written.

    `walk` goes through the neurons that are written: there may be thousands, each with a large projection.
    Where the engine itself fails, every task fails and the worker lives on. Where memory runs out, each half is tried
    by itself, down to the single tasks that cannot be run at all.
    """
    try:
        return _run_whole(engine, tasks, report, computed, walk)
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
    halves = tasks[:middle], tasks[middle:]
    return [answer for half in halves for answer in run_batch(engine, half, report, walk=walk)]


def failed_batch(error: Exception, tasks: Sequence[Task]) -> list[Answer]:
    """The same internal error for every task. Its message is for the log: callers see a request id only."""
    return [InternalError(f"the batch failed with {type(error).__name__}: {error}") for _ in tasks]


def _run_whole(
    engine: Engine, tasks: Sequence[Task], report: BatchReport, computed: Callable[[], None], walk: Walk
) -> list[Answer]:
    outcomes = engine.run(tasks)
    if len(outcomes) != len(tasks):
        raise RuntimeError(f"the engine gave {len(outcomes)} outcomes for {len(tasks)} tasks")
    computed()
    report.ran(engine.facts.device, outcomes)
    return [_packed(engine.facts, outcome, walk) for outcome in outcomes]


def _packed(facts: ModelFacts, outcome: Outcome, walk: Walk) -> Answer:
    if isinstance(outcome, ProjectOutcome):
        result = ProjectNeuronResult(facts.identity, outcome.projections)
        return PackedProjections(convert.project_neuron_result_to_proto(result).SerializeToString())
    if not isinstance(outcome, AttributeOutcome | TraceOutcome):
        return outcome
    timings = Timings(
        forward=outcome.forward,
        scoring=outcome.scoring,
        batch_requests=outcome.batch_requests,
        batch_tokens=outcome.batch_tokens,
    )
    if isinstance(outcome, TraceOutcome):
        graph = convert.graph_to_proto(facts.identity, outcome.graph)
        return PackedTrace(outcome.token_ids, graph.SerializeToString(), timings)
    message = convert.explanations_to_proto(
        facts.identity, outcome.explanations, outcome.aggregate, walk, outcome.generation
    )
    return PackedAttribution(outcome.token_ids, message.SerializeToString(), timings)
