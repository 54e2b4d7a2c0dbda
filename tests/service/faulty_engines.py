"""Engines for worker processes that take their time, wait, hang, find no memory, or have much to say."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from service.fakes import FACTS, FakeEngine

HANG, HUGE = 7, 8
"""Tokens that make an engine hang, or find no memory."""
TALK = 9
"""A token that makes an engine answer at length."""
LONG_ANSWER = 12 * 2**20
"""Bytes of such an answer."""


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


class TalkativeEngine(FakeEngine):
    """Answers prompts with a TALK token at length: in the first explanation is a matrix of LONG_ANSWER bytes."""

    def run(self, tasks):
        outcomes = super().run(tasks)
        return [_at_length(each) if TALK in getattr(each, "token_ids", ()) else each for each in outcomes]


def _at_length(outcome):
    first, *others = outcome.explanations
    matrix = np.zeros((1, LONG_ANSWER // 4), np.float32)
    return replace(outcome, explanations=(replace(first, head_scores=matrix), *others))


def make_talkative_engine():
    return TalkativeEngine()
