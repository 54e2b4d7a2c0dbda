"""Engines for worker processes that take their time, wait, hang, or find no memory."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from neuron_attribution_server.worker import WARM_UP
from service.fakes import FACTS, FakeEngine

HANG, HUGE = 7, 8
"""Tokens that make an engine hang, or find no memory."""


class SlowEngine(FakeEngine):
    """Takes long enough for a batch to be killed in the middle of many calls; single tasks go fast."""

    def run(self, tasks):
        time.sleep(0.1 if len(tasks) > 1 else 0.005)
        if any(HANG in task.token_ids for task in tasks):
            threading.Event().wait()
        return super().run(tasks)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch names it, which the front end must not import."""


class SmallEngine(FakeEngine):
    """Has memory for batches of up to three tasks, and none for a HUGE one; `error` is what it raises then."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error or OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def run(self, tasks):
        outcomes = super().run(tasks)
        if len(tasks) > 3 or any(HUGE in task.token_ids for task in tasks):
            raise self.error
        return outcomes


def make_slow_engine():
    return SlowEngine()


class SlowSmallEngine(SmallEngine):
    """Leaves others the time to come together in the next batch."""

    def run(self, tasks):
        time.sleep(0.1)
        return super().run(tasks)


def make_slow_small_engine():
    return SlowSmallEngine()


def never_make_an_engine():
    threading.Event().wait()


class GatedEngine(FakeEngine):
    """Writes the size of each batch into the folder that GATED_ENGINE names, and waits until it has a file `open`.

    The folder's name is the revision of its model, which tells several servers apart.
    """

    @property
    def facts(self):
        identity = replace(FACTS.identity, revision=Path(os.environ["GATED_ENGINE"]).name)
        return replace(FACTS, identity=identity)

    def run(self, tasks):
        folder = Path(os.environ["GATED_ENGINE"])
        with (folder / "batches").open("a") as file:
            file.write(f"{len(tasks)}\n")
        while not (folder / "open").exists():
            time.sleep(0.01)
        return super().run(tasks)


def make_gated_engine():
    return GatedEngine()


def make_engine_when_allowed():
    """Loads for as long as the folder that SLOW_LOAD names has no file `load`."""
    while not (Path(os.environ["SLOW_LOAD"]) / "load").exists():
        time.sleep(0.01)
    return FakeEngine()


class TurnstileEngine(FakeEngine):
    """Writes the size of each batch into the folder that TURNSTILE names, and lets in as many as its file `allowed`
    says.
    """

    def run(self, tasks):
        if WARM_UP not in tasks:
            folder = Path(os.environ["TURNSTILE"])
            with (folder / "batches").open("a") as file:
                file.write(f"{len(tasks)}\n")
            number = len((folder / "batches").read_text().split())
            while int((folder / "allowed").read_text() or 0) < number:
                time.sleep(0.01)
        return super().run(tasks)


def make_turnstile_engine():
    return TurnstileEngine()
