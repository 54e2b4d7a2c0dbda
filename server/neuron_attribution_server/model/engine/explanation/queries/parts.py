"""The query parts of a group of rows: what activates their strongest value neurons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from neuron_attribution.requests import Part, Subkey
from neuron_attribution.results import NeuronRanking
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Array
from neuron_attribution_server.model.attribution.search.value_search import Kind
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.model.engine.explanation.queries.layers import (
    attention_reading,
    ffn_reading,
    named_layers,
    query_layers,
)
from neuron_attribution_server.model.engine.explanation.queries.neurons import named_neurons, query_ffn_neurons
from neuron_attribution_server.model.engine.explanation.rows import Row
from neuron_attribution_server.model.engine.explanation.sources import Asked, Sources
from neuron_attribution_server.model.engine.explanation.value_rankings import SIGNS

LAYER_FIELDS = {Kind.FFN: "ffn_query_layers", Kind.ATTENTION: "attention_query_layers"}
NEURON_FIELDS = {1: "query_ffn_neurons", -1: "query_ffn_neurons_decreasing"}


class Queries:
    """Computes the query parts of all rows, and reads each row's from what is fetched of `tensors`."""

    def __init__(
        self,
        view: ModelView,
        captured: CapturedStates,
        rows: Sequence[Row],
        sources: Mapping[Kind, Mapping[int, Sources]],
    ) -> None:
        """Of rows that ask for query parts, the sources of each kind, by row."""
        self._view, self._captured, self._rows, self._sources = view, captured, rows, sources
        self._layer_places: dict[tuple[Kind, int], int] = {}
        self._neuron_places: dict[tuple[int, int], tuple[Hashable, int]] = {}
        self.tensors: dict[Hashable, Tensor] = {}
        """What there is to be fetched, by name."""
        self._find_layers()
        self._find_neurons()

    def parts(self, index: int, fetched: Mapping[Hashable, Array]) -> dict[str, Any]:
        """The query parts of a row, as keyword arguments of its explanation."""
        found: dict[str, Any] = {}
        for kind, field in LAYER_FIELDS.items():
            row = self._layer_places.get((kind, index))
            if row is not None:
                scores, skipped = fetched["query layers"][row], int(fetched["skipped sources"][row])
                found[field] = named_layers(scores, len(self._sources[kind][index]), skipped)
        for sign in SIGNS[self._rows[index].options.direction]:
            if place := self._neuron_places.get((sign, index)):
                found[NEURON_FIELDS[sign]] = self._ranking(index, *place, fetched)
        return found

    def _ranking(self, index: int, name: Hashable, row: int, fetched: Mapping[Hashable, Array]) -> NeuronRanking:
        k = self._rows[index].options.top_k
        return named_neurons(self._view, *(fetched[name, each][row, :k] for each in ("ids", "scores", "written")))

    def _find_layers(self) -> None:
        """Of both kinds together: every component is read once."""
        by_subkey: dict[Subkey, list[int]] = defaultdict(list)
        for index in self._asking(Part.QUERY_LAYERS, Kind.FFN):
            by_subkey[self._rows[index].options.subkey].append(index)
        ffn = [
            ffn_reading(self._view, [self._asked(index, Kind.FFN) for index in indices], subkey)
            for subkey, indices in by_subkey.items()
        ]
        attention = self._asking(Part.QUERY_LAYERS, Kind.ATTENTION)
        asked = [self._asked(index, Kind.ATTENTION) for index in attention]
        readings = [*ffn, attention_reading(self._view, asked)] if asked else ffn
        if not readings:
            return
        found = query_layers(self._captured, readings)
        self.tensors |= {"query layers": found.scores, "skipped sources": found.skipped}
        of_ffn = [(Kind.FFN, index) for indices in by_subkey.values() for index in indices]
        every = [*of_ffn, *((Kind.ATTENTION, index) for index in attention)]
        self._layer_places = {each: row for row, each in enumerate(every)}

    def _find_neurons(self) -> None:
        indices = self._asking(Part.QUERY_FFN_NEURONS, Kind.ATTENTION)
        start = 0
        for count, ends in query_ffn_neurons(
            self._view, self._captured, [self._asked(index, Kind.ATTENTION) for index in indices]
        ):
            for sign, found in ends.items():
                name = ("query neurons", sign, start)
                self.tensors |= {(name, each): getattr(found, each) for each in ("ids", "scores", "written")}
                mine = indices[start : start + count]
                self._neuron_places |= {(sign, index): (name, row) for row, index in enumerate(mine)}
            start += count

    def _asking(self, part: Part, kind: Kind) -> list[int]:
        return [index for index in self._sources[kind] if part in self._rows[index].options.parts]

    def _asked(self, index: int, kind: Kind) -> Asked:
        """The sources, attention's in the layers that made their values: there their keys read."""
        sources = self._sources[kind][index]
        if kind is Kind.ATTENTION:
            sources = replace(sources, layers=np.array(self._view.value_layers)[sources.layers])
        return Asked(self._rows[index], sources)
