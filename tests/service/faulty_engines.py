"""Engines for worker processes that take their time, wait, hang, find no memory, or have much to say."""

import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from neuron_attribution_server.model.attribution.checkpoints import checkpoint
from neuron_attribution_server.tasks.running import WARM_UP
from service.fakes import FACTS, FakeEngine

HANG, HUGE, ENDLESS = 7, 8, 9
"""Tokens that make an engine hang, find no memory, or work until it is stopped."""
MEND = 11
"""A token that mends what an engine could not prepare; each makes it do a part of that."""
TALK = 10
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


class EngineWithCheckpoints(FakeEngine):
    """Takes a tenth of a second for each token, looking up all the while; for an ENDLESS one it takes for ever.

    A HANG one makes it never look up again.
    """

    def run(self, tasks):
        if any(HANG in task.token_ids for task in tasks):
            threading.Event().wait()
        seconds = 0.1 * sum(task.tokens for task in tasks)
        end = math.inf if any(ENDLESS in task.token_ids for task in tasks) else time.perf_counter() + seconds
        while time.perf_counter() < end:
            checkpoint()
            time.sleep(0.005)
        return super().run(tasks)


def make_engine_with_checkpoints():
    return EngineWithCheckpoints()


class Parts:
    """Ten parts of two tenths of a second each, looking up all the while; `broken` ones fail."""

    parts = 10

    def __init__(self, broken=False):
        self.broken = broken
        self.done = 0

    def advance(self):
        if self.broken:
            raise RuntimeError("this cannot be prepared")
        if self.done == self.parts:
            return False
        worked = 0.0
        while worked < 0.2:
            checkpoint()
            time.sleep(0.005)
            worked += 0.005
        self.done += 1
        return True


class PreparingEngine(EngineWithCheckpoints):
    """Has something to prepare for requests to come."""

    def __init__(self, broken=False):
        super().__init__()
        self.preparation = Parts(broken)

    def run(self, tasks):
        if any(MEND in task.token_ids for task in tasks):
            self.preparation.broken = False
            for _ in range(sum(task.token_ids.count(MEND) for task in tasks)):
                self.preparation.advance()
        return super().run(tasks)


def make_preparing_engine():
    return PreparingEngine()


def make_engine_that_cannot_prepare():
    return PreparingEngine(broken=True)


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


class Turnstile:
    """A folder that turnstile engines share with a test: the sizes of the batches so far, and how many may go in."""

    def __init__(self, folder):
        self._batches, self._allowed = folder / "batches", folder / "allowed"
        self._batches.touch()

    @property
    def batches(self):
        """The size of each batch that has come, whether or not it is in."""
        return [int(size) for size in self._batches.read_text().split()]

    @property
    def allowed(self):
        return int(self._allowed.read_text()) if self._allowed.exists() else 0

    def allow(self, number):
        """Let in the first so many batches."""
        new = self._allowed.with_suffix(".new")
        new.write_text(str(number))
        new.rename(self._allowed)

    def comes(self, size):
        """Note one more batch; return its number, from one on."""
        with self._batches.open("a") as file:
            file.write(f"{size}\n")
        return len(self.batches)


class TurnstileEngine(FakeEngine):
    """Waits before each batch, but for the first task that warms it up, until its turnstile lets it in."""

    def run(self, tasks):
        if WARM_UP not in tasks:
            turnstile = Turnstile(Path(os.environ["TURNSTILE"]))
            number = turnstile.comes(len(tasks))
            while turnstile.allowed < number:
                time.sleep(0.01)
        return super().run(tasks)


def make_turnstile_engine():
    return TurnstileEngine()


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
