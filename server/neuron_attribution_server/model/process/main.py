"""The worker process, from the inside: it loads the model, says so, and runs batches until its pipe closes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from multiprocessing.connection import Connection

from neuron_attribution.errors import NeuronAttributionError

from neuron_attribution_server.model.loading import math_libraries
from neuron_attribution_server.model.process.batches import BatchRunner
from neuron_attribution_server.model.process.calibration import MeasuredEngine, measured_work
from neuron_attribution_server.settings import heap
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.settings.logs import configure_logging
from neuron_attribution_server.tasks.model_facts import Engine
from neuron_attribution_server.tasks.running import EngineFactory
from neuron_attribution_server.tasks.wire.messages import Beat, Failed, Load, Ready
from neuron_attribution_server.tasks.wire.pipe import WorkerEnd

BEAT_SECONDS = 1.0
_TIDY_SECONDS = 1.0
_BEATS_UNTIL_TIDIED = 10

_log = logging.getLogger(__name__)

# What loading fails with when the model, its files or the machine are to blame; anything else is a bug and is logged.
_EXPECTED = (NeuronAttributionError, OSError, ValueError, RuntimeError, ImportError)


def load(settings: LoadSettings) -> Engine:
    """Load the model. The import is here so that PyTorch is loaded in the worker process alone."""
    math_libraries.configure()
    from neuron_attribution_server.model.loading.models import load_engine

    return load_engine(settings)


def load_measured(settings: LoadSettings) -> Engine:
    """Load the model and measure what work costs here, which a scheduler wants to know."""
    engine = load(settings)
    return MeasuredEngine(engine, measured_work(engine))


@dataclass(frozen=True)
class Loading:
    """What a worker process is given to load its model: all of it can be pickled."""

    settings: LoadSettings
    measured: bool = False

    def prepare(self) -> None:
        """Import the libraries, which takes longer than to load a small model."""
        math_libraries.configure()
        import_module("neuron_attribution_server.model.loading.models")

    def __call__(self) -> Engine:
        """Load the model."""
        return load_measured(self.settings) if self.measured else load(self.settings)


def main(pipe: socket.socket, lifeline: Connection, factory: EngineFactory, log_level: str, log_format: str) -> None:
    """Run in the worker process. Nothing comes through the lifeline: that it ends, ends the process."""
    # A signal to the whole group (Ctrl-C, a hangup, systemd) is the parent's: it drains first, then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logging(log_level, log_format)
    front_end = WorkerEnd(pipe)
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()
    threading.Thread(target=_beat, args=(front_end,), daemon=True).start()
    with suppress(EOFError, OSError):  # told to stop, or without a parent
        engine = _load(front_end, factory)
        if engine is not None:
            BatchRunner(front_end, engine).serve()


def _beat(front_end: WorkerEnd) -> None:
    with suppress(OSError):  # the parent has gone; the lifeline ends the process
        for beats in count(1):
            front_end.send(Beat())
            time.sleep(BEAT_SECONDS)
            if beats % _BEATS_UNTIL_TIDIED == 0:
                heap.give_back()


def _follow(lifeline: Connection) -> None:
    """Told to stop or without a parent, end the process, even amid a load or a batch."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    time.sleep(_TIDY_SECONDS)  # an idle process ends by itself meanwhile, and leaves nothing behind
    os._exit(0)


def _load(front_end: WorkerEnd, factory: EngineFactory) -> Engine | None:
    """Load the model when told to. Raises EOFError where the pipe is closed before: a spare was not needed."""
    try:
        if prepare := getattr(factory, "prepare", None):
            prepare()
    except Exception as error:
        _failed(front_end, error)
        return None
    told = front_end.receive()
    assert isinstance(told, Load), told
    try:
        engine = factory()
        front_end.send(Ready(engine.facts))
    except Exception as error:
        _failed(front_end, error)
        return None
    return engine


def _failed(front_end: WorkerEnd, error: Exception) -> None:
    level = logging.DEBUG if isinstance(error, _EXPECTED) else logging.ERROR
    _log.log(level, "loading failed", exc_info=error)
    front_end.send(Failed(_in_one_line(error)))


def _in_one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if message and isinstance(error, _EXPECTED) else f"{type(error).__name__}: {message}"
