"""A model that explains batches of a corpus in its own process, as a Ray actor: the service's steps without gRPC."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
from neuron_attribution import convert
from neuron_attribution.analysis.corpus import CorpusItem
from neuron_attribution.analysis.rows import ItemRows, failed_rows, result_rows, unreadable
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.transport.status import from_status, to_status
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

from neuron_attribution_server.front_end.scheduling.batches import BatchLimits, is_dense
from neuron_attribution_server.front_end.service.served_model import PreparedAttribution, ServedModel
from neuron_attribution_server.model.process.main import load
from neuron_attribution_server.settings.config import LoadSettings, ServerConfig
from neuron_attribution_server.tasks.answers import Answer, PackedAttribution
from neuron_attribution_server.tasks.reports import BatchReport
from neuron_attribution_server.tasks.running import run_batch

COLUMN = "pickled"
"""The one column of what goes in, prompts, and of what comes out, their rows."""

Prepared = tuple[CorpusItem, PreparedAttribution]


def packed(values: Iterable[object]) -> pa.Table:
    """Values as Ray Data carries them."""
    return pa.table({COLUMN: pa.array(map(pickle.dumps, values), pa.large_binary())})


def unpacked(table: pa.Table) -> Iterator[object]:
    """The values of such a table."""
    return (pickle.loads(value.as_py()) for value in table[COLUMN])


class CorpusActor:
    """Holds a model. A batch of prompts runs in as few forward passes as a server's limits allow."""

    def __init__(self, settings: LoadSettings) -> None:
        config = ServerConfig(model=settings.model)
        self._engine = load(settings)
        facts = self._engine.facts
        self._model = ServedModel(facts, replace(config.limits(facts.maximum_tokens), request_seconds=0.0))
        self._limits = BatchLimits(requests=config.batch_requests, tokens=config.batch_tokens, memory=facts.memory)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows of a batch of prompts, in any order."""
        return packed(self.explain([item for item in unpacked(batch) if isinstance(item, CorpusItem)]))

    def explain(self, items: Sequence[CorpusItem]) -> Iterator[ItemRows]:
        """The rows of some prompts, in any order."""
        prepared: list[Prepared] = []
        for item in items:
            try:
                if item.request is None:
                    yield unreadable(item)
                else:
                    message = convert.attribute_request_to_proto(item.request)
                    prepared.append((item, self._model.prepare_attribution(message, reproducible=True)))
            except NeuronAttributionError as error:
                yield failed_rows(item, error)
        for together in self._batches(prepared):
            answers = run_batch(self._engine, [ready.task for _, ready in together], BatchReport())
            for (item, ready), answer in zip(together, answers, strict=True):
                yield self._rows(item, ready, answer)

    def _batches(self, prepared: Sequence[Prepared]) -> Iterator[list[Prepared]]:
        """Prompts of like lengths share a forward pass."""
        batch: list[Prepared] = []
        for each in sorted(prepared, key=lambda pair: pair[1].task.tokens):
            tasks = [ready.task for _, ready in (*batch, each)]
            if batch and not (self._limits.allow(tasks) and is_dense(tasks)):
                yield batch
                batch = []
            batch.append(each)
        if batch:
            yield batch

    def _rows(self, item: CorpusItem, ready: PreparedAttribution, answer: Answer) -> ItemRows:
        assert isinstance(answer, PackedAttribution | NeuronAttributionError)
        if isinstance(answer, NeuronAttributionError):
            return failed_rows(item, from_status(to_status(answer)))  # what a caller of the service may read
        timings = replace(answer.timings, tokenization=ready.tokenization)
        response = b"".join(self._model.finish_attribution(answer, timings, ready.origins))
        return result_rows(item, convert.attribute_result_from_proto(messages.AttributeResponse.FromString(response)))
