"""What is known of a loaded model, and what runs tasks with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from neuron_attribution.requests import Part
from neuron_attribution.results import Exactness, Invariant, ModelIdentity, ModelSizes

from neuron_attribution_server.tasks.answers import Outcome
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import Task


@dataclass(frozen=True, slots=True)
class WorkPrices:
    """Seconds of a worker's time that each kind of work takes, by its name; without any, nothing is predicted."""

    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the front end knows of the loaded model. `tokenizer` is the tokenizers library's JSON."""

    identity: ModelIdentity
    family: str
    device: str
    sizes: ModelSizes
    maximum_tokens: int
    supported_parts: tuple[Part, ...]
    exactness: Exactness
    invariants: tuple[Invariant, ...]
    tokenizer: str
    memory: MemoryCost
    work: WorkPrices = WorkPrices()
    activity_contexts: int = 0
    """In how many contexts the activity of FFN neurons was looked at."""


class Engine(Protocol):
    """What a worker runs. Calls never overlap."""

    @property
    def facts(self) -> ModelFacts:
        """What is loaded."""
        ...

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch; outcomes in the order of the tasks, a failed task's error in its place."""
        ...
