"""What the front end and a worker process say to each other through their pipe."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.tasks import Task


@dataclass(frozen=True, slots=True)
class Load:
    """To the worker: load the model now. Until then it does what needs no model, and waits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """To the worker: run these tasks. Sent while another batch runs, it goes first at that one's next checkpoint."""

    number: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """To the worker: nobody waits for this batch any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Failed:
    """The model could not be loaded, in one line."""

    message: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch has begun; where another one is at work, inside that, which goes on after it."""

    number: int


@dataclass(frozen=True, slots=True)
class Computed:
    """A batch is computed; its answers are being written and follow."""

    number: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch is done."""

    number: int
    outcomes: list[Answer]
    report: bytes
    """The pickled BatchReport, which is read when the answers are on their way: somebody waits for them."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """So many parts are done of what is prepared for requests to come."""

    done: int
    parts: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The process lives: it is not stopped, and its interpreter runs threads."""


FromWorker = Ready | Failed | Begun | Computed | Finished | Prepared | Beat
ToWorker = Load | Batch | Drop
