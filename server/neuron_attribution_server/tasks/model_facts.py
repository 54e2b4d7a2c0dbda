"""What is known of a loaded model, and what runs tasks with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from neuron_attribution.requests import Part
from neuron_attribution.results import Exactness, Invariant, LayerParts, ModelIdentity, ModelSizes

from neuron_attribution_server.tasks.answers import Outcome
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import Task


@dataclass(frozen=True, slots=True)
class WorkPrices:
    """Seconds of a worker's time that each kind of work takes, by its name; without any, nothing is predicted."""

    seconds: Mapping[str, float] = field(default_factory=dict)


DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"
"""The names of a model's chat templates that are taken where none is named: the second where tools are given."""


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's chat templates by their names, and the special tokens that they may write by theirs."""

    templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)


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
    chat: ChatTemplates = ChatTemplates()
    activity_contexts: int = 0
    """In how many contexts the activity of FFN neurons was looked at."""
    layers: tuple[LayerParts, ...] = ()
    """What each layer is made of."""
    untraceable: str = ""
    """What of the model no trace can hold; empty where it can be traced."""


class Preparation(Protocol):
    """What an engine can do, in parts, for requests to come, while nothing else is to be done."""

    @property
    def parts(self) -> int:
        """How many parts there are."""
        ...

    @property
    def done(self) -> int:
        """How many are done."""
        ...

    def advance(self) -> bool:
        """Do the next part; whether there was one. A batch may run at its checkpoints."""
        ...


@dataclass(frozen=True, slots=True)
class _Nothing:
    """There is nothing to prepare."""

    parts: int = 0
    done: int = 0

    def advance(self) -> bool:
        """Nothing is done."""
        return False


NOTHING_TO_PREPARE: Preparation = _Nothing()


class Engine(Protocol):
    """What a worker runs. Calls never overlap, but that a batch may run at the checkpoints of what is prepared."""

    @property
    def facts(self) -> ModelFacts:
        """What is loaded."""
        ...

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch; outcomes in the order of the tasks, a failed task's error in its place."""
        ...


def preparation_of(engine: Engine) -> Preparation:
    """What an engine can prepare; nothing, where it says nothing of it."""
    found: Preparation = getattr(engine, "preparation", NOTHING_TO_PREPARE)
    return found
