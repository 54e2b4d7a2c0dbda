"""Engines for worker processes whose faults somebody should be told of."""

import os
import time
from dataclasses import replace
from pathlib import Path

from neuron_attribution.results import Coverage, NeuronRanking
from service.fakes import FakeEngine, hang_while_loading

LATE_SECONDS = 11
"""Longer than the objective for latency allows."""


class LateEngine(FakeEngine):
    """Takes too long for a batch; single tasks go fast."""

    def run(self, tasks):
        time.sleep(LATE_SECONDS if len(tasks) > 1 else 0)
        return super().run(tasks)


def make_late_engine():
    return LateEngine()


class InexactEngine(FakeEngine):
    """Gives rankings that it does not claim to be exact."""

    def run(self, tasks):
        return [
            replace(outcome, explanations=tuple(map(_inexact, outcome.explanations))) for outcome in super().run(tasks)
        ]


def _inexact(explanation):
    return replace(explanation, ffn_value_neurons=NeuronRanking((), Coverage(64, 64, 1, exact=False)))


def make_inexact_engine():
    return InexactEngine()


def make_engine_once():
    """An engine the first time; afterwards, as the file that LOADED_ONCE names then shows, loading never ends."""
    loaded = Path(os.environ["LOADED_ONCE"])
    if loaded.exists():
        hang_while_loading()
    loaded.touch()
    return FakeEngine()
