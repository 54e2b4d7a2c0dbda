"""The worker: what runs the batches. A process of its own in production, a thread in tests; one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from neuron_attribution.errors import NeuronAttributionError

from neuron_attribution_server.tasks.answers import Answer
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.tasks import Task


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
    """What runs on one device: whether it is live, how often it was restarted, and its process, if it has one.

    `prepared` is the part that is done of what is prepared for requests to come.
    """

    device: str
    is_live: bool
    restarts: int = 0
    pid: int | None = None
    prepared: float = 0.0


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
