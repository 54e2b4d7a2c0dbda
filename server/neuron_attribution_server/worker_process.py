"""The worker process, from the inside: it loads the model, says so, and runs batches until its pipe closes."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue

from neuron_attribution.errors import NeuronAttributionError

from neuron_attribution_server import math_libraries
from neuron_attribution_server.config import LoadSettings
from neuron_attribution_server.logs import configure_logging
from neuron_attribution_server.reports import BatchReport
from neuron_attribution_server.tasks import Answer, Engine, ModelFacts, Task
from neuron_attribution_server.worker import EngineFactory, failed_batch, run_batch

BEAT_SECONDS = 1.0
_TIDY_SECONDS = 1.0

_log = logging.getLogger(__name__)

# What loading fails with when the model, its files or the machine are to blame; anything else is a bug and is logged.
_EXPECTED = (NeuronAttributionError, OSError, ValueError, RuntimeError, ImportError)


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Failed:
    """The model could not be loaded, in one line."""

    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch is done."""

    outcomes: list[Answer]
    report: BatchReport


@dataclass(frozen=True, slots=True)
class Beat:
    """The process lives: it is not stopped, and its interpreter runs threads."""


Message = Ready | Failed | Finished | Beat
Batches = SimpleQueue[Sequence[Task] | None]


def load(settings: LoadSettings) -> Engine:
    """Load the model. The import is here so that PyTorch is loaded in the worker process alone."""
    math_libraries.settle()
    from neuron_attribution_server.models import load_engine

    return load_engine(settings)


def main(connection: Connection, factory: EngineFactory, log_level: str, log_format: str) -> None:
    """Run in the worker process."""
    # A signal to the whole group (Ctrl-C, systemd) is the parent's to handle: it drains first, then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_logging(log_level, log_format)
    batches: Batches = SimpleQueue()
    outbox = _Outbox(connection)
    threading.Thread(target=_receive, args=(connection, batches), daemon=True).start()
    threading.Thread(target=_beat, args=(outbox,), daemon=True).start()
    engine = _load(outbox, factory)
    while engine is not None and (tasks := batches.get()) is not None:
        _run(outbox, engine, tasks)


class _Outbox:
    """The way to the front end, for one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message; pickling comes before the first byte, so what cannot be pickled leaves the pipe in order."""
        with self._lock:
            self._connection.send(message)


def _beat(outbox: _Outbox) -> None:
    with suppress(OSError):  # the parent has gone; the receiving thread ends the process
        while True:
            outbox.send(Beat())
            time.sleep(BEAT_SECONDS)


def _receive(connection: Connection, batches: Batches) -> None:
    """Pass batches on; told to stop (None) or without a parent, end the process, even amid a load or a batch."""
    with suppress(EOFError, OSError):
        while (tasks := connection.recv()) is not None:
            batches.put(tasks)
    batches.put(None)
    time.sleep(_TIDY_SECONDS)  # an idle process ends by itself meanwhile, and leaves nothing behind
    os._exit(0)


def _load(outbox: _Outbox, factory: EngineFactory) -> Engine | None:
    try:
        engine = factory()
        outbox.send(Ready(engine.facts))
    except Exception as error:
        level = logging.DEBUG if isinstance(error, _EXPECTED) else logging.ERROR
        _log.log(level, "loading failed", exc_info=True)
        outbox.send(Failed(_in_one_line(error)))
        return None
    return engine


def _run(outbox: _Outbox, engine: Engine, tasks: Sequence[Task]) -> None:
    report = BatchReport()
    outcomes = run_batch(engine, tasks, report)
    try:
        outbox.send(Finished(outcomes, report))
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        _log.exception("outcomes could not be sent")
        outbox.send(Finished(failed_batch(error, tasks), report))


def _in_one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if message and isinstance(error, _EXPECTED) else f"{type(error).__name__}: {message}"
