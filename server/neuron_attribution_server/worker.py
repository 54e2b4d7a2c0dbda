"""The worker: what runs the batches. A process of its own in production, a thread in tests; one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from neuron_attribution import convert
from neuron_attribution.errors import InternalError
from neuron_attribution.results import AttributeResult, Timings

from neuron_attribution_server.tasks import (
    Answer,
    AttributeOutcome,
    Engine,
    ModelFacts,
    Outcome,
    PackedAttribution,
    Task,
)

EngineFactory = Callable[[], Engine]

_log = logging.getLogger(__name__)


class ModelLoadError(Exception):
    """The model could not be loaded; the message is one readable line."""


class Worker(Protocol):
    """Loads one model and runs batches on it, at most `capacity` at the same time."""

    @property
    def capacity(self) -> int:
        """Batches that can run at the same time."""
        ...

    async def start(self) -> ModelFacts:
        """Load the model. Raises ModelLoadError."""
        ...

    async def run(self, tasks: Sequence[Task]) -> list[Answer]:
        """Run one batch; outcomes in the order of the tasks. Raises UnavailableError where the worker has died."""
        ...

    async def ended(self) -> None:
        """Wait until the worker ends by itself, which it should not."""
        ...

    async def stop(self) -> None:
        """End the worker, whatever it is doing."""
        ...


def run_batch(engine: Engine, tasks: Sequence[Task]) -> list[Answer]:
    """Run one batch; where the engine itself fails, every task fails and the worker lives on."""
    try:
        outcomes = engine.run(tasks)
        if len(outcomes) != len(tasks):
            raise RuntimeError(f"the engine gave {len(outcomes)} outcomes for {len(tasks)} tasks")
        return [_packed(engine.facts, outcome) for outcome in outcomes]
    except Exception as error:
        _log.exception("a batch of %d tasks failed", len(tasks))
        return failed_batch(error, tasks)


def failed_batch(error: Exception, tasks: Sequence[Task]) -> list[Answer]:
    """The same internal error for every task. Its message is for the log: callers see a request id only."""
    return [InternalError(f"the batch failed with {type(error).__name__}: {error}") for _ in tasks]


def _packed(facts: ModelFacts, outcome: Outcome) -> Answer:
    if not isinstance(outcome, AttributeOutcome):
        return outcome
    timings = Timings(
        forward=outcome.forward,
        scoring=outcome.scoring,
        batch_requests=outcome.batch_requests,
        batch_tokens=outcome.batch_tokens,
    )
    result = AttributeResult(facts.identity, (), outcome.explanations, timings)
    return PackedAttribution(outcome.token_ids, convert.attribute_result_to_proto(result).SerializeToString())
