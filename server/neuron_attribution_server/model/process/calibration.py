"""Measures at load what each kind of work costs on this device: a few small tasks of different kinds, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import AttributeOptions, Intervention, Part, Side
from neuron_attribution.results import LayerParts, ModelSizes
from neuron_attribution.traces import TraceOptions

from neuron_attribution_server.tasks.answers import Outcome
from neuron_attribution_server.tasks.model_facts import Engine, ModelFacts, WorkPrices, preparation_of
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import run_batch
from neuron_attribution_server.tasks.tasks import (
    AttributeTask,
    ExplainedToken,
    InterveneTask,
    ProjectTask,
    Task,
    TraceTask,
)
from neuron_attribution_server.tasks.work import work_of
from neuron_attribution_server.tasks.work_prices import Sample, measured_prices

BUDGET_SECONDS = 3.0
"""After so long no second sample is begun: a model that takes longer is priced by one, and by its sizes."""
_SHORT, _LONG = 8, 96
_FEW = 32


class MeasuredEngine:
    """An engine whose facts have the prices of work."""

    def __init__(self, engine: Engine, work: WorkPrices) -> None:
        self._engine = engine
        self.facts: ModelFacts = replace(engine.facts, work=work)
        self.preparation = preparation_of(engine)

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Run one batch."""
        return self._engine.run(tasks)


def measured_work(engine: Engine) -> WorkPrices:
    """The prices of work on the engine's device. What fails is no sample; where everything does there are no prices.

    One sample is taken however slow the device is: what is not priced is not bounded.
    """
    sizes, layers = engine.facts.sizes, engine.facts.layers
    samples: list[Sample] = []
    began = time.perf_counter()
    for place, task in enumerate(_tasks(sizes, layers, engine.facts.maximum_tokens)):
        if samples and time.perf_counter() - began > BUDGET_SECONDS:
            break
        started = time.perf_counter()
        [answer] = run_batch(engine, [task], BatchReport())
        seconds = time.perf_counter() - started
        if place and not isinstance(answer, NeuronAttributionError):  # the first one pays for everything's first time
            samples.append(Sample(work_of([task], sizes), seconds))
    return measured_prices(sizes, samples) if samples else WorkPrices()


def _tasks(sizes: ModelSizes, parts: Sequence[LayerParts], most: int) -> Iterator[Task]:
    short, long = min(_SHORT, most), min(_LONG, most)
    everything = AttributeOptions()
    layers = AttributeOptions(parts=frozenset({Part.LAYERS}))
    yield _attribution(short, 1, everything)
    yield _attribution(short, 1, layers)
    yield _attribution(short, 1, everything)
    yield ProjectTask(neurons=_neurons(sizes, parts, 0, _FEW))
    yield InterveneTask(token_ids=_ids(short), sets=((Intervention(neurons=_neurons(sizes, parts, 0, 4)),),))
    yield _attribution(long, 1, layers)
    yield _attribution(short, short, layers)
    yield ProjectTask(neurons=_neurons(sizes, parts, _FEW, _FEW), side=Side.SUBKEY, top_k=min(300, sizes.vocabulary))
    traced = TraceOptions(nodes=_FEW, screened=_FEW, projection_top_k=0)
    yield TraceTask(token_ids=_ids(short), explained=(ExplainedToken(short - 1),), options=traced)
    yield InterveneTask(token_ids=_ids(max(1, min(short, most - 2))), sets=((),), generate=2)


def _attribution(tokens: int, rows: int, options: AttributeOptions) -> AttributeTask:
    explained = tuple(map(ExplainedToken, range(tokens - rows, tokens)))
    return AttributeTask(token_ids=_ids(tokens), explained=explained, options=options)


def _ids(count: int) -> tuple[int, ...]:
    return tuple(range(1, count + 1))


def _neurons(sizes: ModelSizes, layers: Sequence[LayerParts], first: int, count: int) -> tuple[FfnNeuron, ...]:
    """Neurons of a dense network, or of an expert where there is none, in the last layer that has any FFN.

    Fewer where there are not as many.
    """
    layer = max((number for number, each in enumerate(layers) if each.ffn_width or each.experts), default=-1)
    layer, dense = (sizes.layers - 1, sizes.ffn_width) if layer < 0 else (layer, layers[layer].ffn_width)
    width, expert = (dense, None) if dense else (sizes.expert_width, 0)
    indices = range(min(first, width), min(first + count, width))
    return tuple(FfnNeuron(layer=layer, index=index, expert=expert) for index in indices)
