"""The price of each kind of work: estimated from a model's sizes, measured at load, corrected by every batch since."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from neuron_attribution.results import ModelSizes

from neuron_attribution_server.tasks.model_facts import WorkPrices
from neuron_attribution_server.tasks.tasks import Task
from neuron_attribution_server.tasks.work import Counts, Work, work_of

_READ = 100
"""Multiplications in the time that it takes to read a weight from memory: what one vector alone costs."""
_SAMPLED = 1024
_CONSTANT_SECONDS = {
    Work.BATCH: 0.01,
    Work.WRITTEN: 5e-6,
    Work.NEURON: 3e-5,
    Work.CHANGE: 1e-4,
    Work.ROW: 5e-3,
    Work.PATTERN: 2e-8,
    Work.LAYER: 5e-4,
}
"""What is Python's work, whatever the device."""
_PRIOR_WEIGHT = 0.03
"""How far the estimates bind the prices, where a sample that is fitted exactly weighs 1."""
_LEARNING_RATE = 0.2
_LARGEST_STEP = 4.0
"""A batch that took longer than so many times its prediction counts no more than that: the machine was busy."""
_LIKE_VECTOR = (Work.RANK, Work.RIVAL)
"""What no sample holds, for its worst takes long: it is a product with the unembedding as well, and as slow or fast."""
_UNLEARNT = {Work.RIVAL.name}
"""What differs so much between prompts that about half of the worst is a prediction."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some work, and the seconds that it took."""

    counts: Counts
    seconds: float


def measured_prices(sizes: ModelSizes, samples: Sequence[Sample]) -> WorkPrices:
    """Prices that fit the samples, and stay near the estimates where these say nothing. Relative errors count."""
    operations = _operations(sizes)
    speed = median(_total(operations, sample.counts) / sample.seconds for sample in samples)
    estimates = {kind: _CONSTANT_SECONDS.get(kind, 0.0) + operations.get(kind, 0.0) / speed for kind in Work}
    return WorkPrices({kind.name: price for kind, price in _fitted(estimates, samples).items()})


class WorkPredictor:
    """Predicts the seconds of worker time that tasks take, and learns from those that they took."""

    def __init__(self, prices: WorkPrices, sizes: ModelSizes) -> None:
        self._prices = dict(prices.seconds)
        self._sizes = sizes

    def seconds(self, tasks: Sequence[Task]) -> float:
        """What a batch of tasks will take."""
        return math.fsum(self._shares(tasks).values())

    def most_seconds(self, tasks: Sequence[Task]) -> float:
        """What a batch of tasks will take where their prompts turn out at their worst: every rival is ranked."""
        counts = Counter(work_of(tasks, self._sizes))
        counts[Work.RANK] += counts.pop(Work.RIVAL, 0)
        return max(math.fsum(self._priced(counts).values()), self.seconds(tasks))

    def learn(self, tasks: Sequence[Task], seconds: float) -> None:
        """Correct the prices by what a batch took; each in proportion to its part of the prediction."""
        shares = self._shares(tasks)
        predicted = math.fsum(shares.values())
        if predicted <= 0 or seconds <= 0:
            return
        step = _LEARNING_RATE * math.log(min(max(seconds / predicted, 1 / _LARGEST_STEP), _LARGEST_STEP))
        for name, share in shares.items():
            if name in _UNLEARNT:
                continue
            factor = math.exp(step * share / predicted)
            self._prices[name] *= factor
            if name == Work.VECTOR.name:
                for like in (each.name for each in _LIKE_VECTOR if each.name in self._prices):
                    self._prices[like] *= factor

    def _shares(self, tasks: Sequence[Task]) -> dict[str, float]:
        return self._priced(work_of(tasks, self._sizes))

    def _priced(self, counts: Counts) -> dict[str, float]:
        priced = ((kind.name, count) for kind, count in counts.items() if kind.name in self._prices)
        return {name: self._prices[name] * count for name, count in priced}


def _total(prices: Mapping[Work, float], counts: Counts) -> float:
    return math.fsum(prices.get(kind, 0.0) * count for kind, count in counts.items())


def _fitted(estimates: Mapping[Work, float], samples: Sequence[Sample]) -> dict[Work, float]:
    """The estimates times factors near one: least squares of relative errors, and of the factors' distance from one."""
    kinds = list(estimates)
    rows = [[estimates[kind] * sample.counts.get(kind, 0.0) / sample.seconds for kind in kinds] for sample in samples]
    matrix = np.concatenate([np.array(rows), math.sqrt(_PRIOR_WEIGHT) * np.eye(len(kinds))])
    wanted = np.concatenate([np.ones(len(samples)), math.sqrt(_PRIOR_WEIGHT) * np.ones(len(kinds))])
    factors, *_ = np.linalg.lstsq(matrix, wanted, rcond=None)
    fitted = {kind: max(0.1, factor) for kind, factor in zip(kinds, factors, strict=True)}
    fitted |= dict.fromkeys(_LIKE_VECTOR, fitted[Work.VECTOR])
    return {kind: price * fitted[kind] for kind, price in estimates.items()}


def _operations(sizes: ModelSizes) -> dict[Work, float]:
    """Multiplications of each kind of work, or as many as take the same time."""
    hidden, vocabulary = sizes.hidden_size, sizes.vocabulary
    heads = sizes.heads * sizes.head_size
    width = sizes.ffn_width + min(sizes.experts, 8) * sizes.expert_width
    attention = 2 * hidden * (heads + sizes.key_value_heads * sizes.head_size)
    token = sizes.layers * (attention + 3 * hidden * width)
    units = sizes.layers * (sizes.ffn_width + sizes.experts * sizes.expert_width + heads)
    product = vocabulary * hidden
    vector = product + 20 * vocabulary
    return {
        Work.TOKEN: token,
        Work.SWEEP: sizes.layers * (attention // 2 + hidden * width),
        Work.PAIR: 2 * sizes.layers * heads,
        Work.STEP: 20 * token,
        Work.GROUP: _READ * 2 * product,
        Work.SEARCH: _READ * (product + units * hidden),
        Work.VECTOR: vector,
        Work.POSITION: product / 2,
        Work.MULTIPLE: 30 * vocabulary,
        Work.RANK: 1.2 * vector,
        Work.RIVAL: 0.6 * vector,
        Work.SAMPLE: units * _SAMPLED * hidden / 2,
        Work.BOUND: 1000,
        Work.PLACE: 3 * sizes.layers * width * hidden,
        Work.SOURCE: 500 * (2 * sizes.layers + 1) * hidden,
        Work.PROJECTION: product + 100 * vocabulary,
        Work.STATE: _READ * product,
    }
