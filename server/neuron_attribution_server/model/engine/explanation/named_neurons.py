"""The neurons a request names: scored whatever their rank, or taken as the sources of the query parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from neuron_attribution.neurons import FfnNeuron, Neuron, QuerySource
from neuron_attribution.results import NeuronScore

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Array, Ids
from neuron_attribution_server.model.attribution.methods import FROM_INCREASE, A
from neuron_attribution_server.model.attribution.search.exact_scores import ExactScores, Places, Scored
from neuron_attribution_server.model.attribution.search.value_search import Grids, Kind
from neuron_attribution_server.model.engine.explanation.rows import Row
from neuron_attribution_server.model.engine.explanation.sources import Sources
from neuron_attribution_server.model.engine.explanation.value_rankings import side


class NamedNeurons:
    """Scores named neurons at the rows of a group, by the objective's increase."""

    def __init__(self, view: ModelView, grids: Grids, exact: ExactScores) -> None:
        self._view = view
        self._grids = grids
        self._exact = exact

    def scores(self, asked: Mapping[int, Sequence[Neuron]]) -> dict[int, tuple[NeuronScore, ...]]:
        """The scores of each row's neurons, by row; attention neurons over all source positions together."""
        pairs = [(row, place, neuron) for row, neurons in asked.items() for place, neuron in enumerate(neurons)]
        found: dict[tuple[int, int], NeuronScore] = {}
        for kind in Kind:
            mine = [each for each in pairs if _kind(each[2]) is kind]
            places = [(row, neuron, 0) for row, _, neuron in mine]
            scored = self._scored(kind, places, over_positions=True)
            columns = (scored.scores.tolist(), scored.coefficients.tolist())
            for (row, place, neuron), score, coefficient in zip(mine, *columns, strict=True):
                found[row, place] = NeuronScore(neuron, score, None, coefficient, None, side(coefficient))
        return {row: tuple(found[row, place] for place in range(len(neurons))) for row, neurons in asked.items()}

    def sources(self, rows: Mapping[int, Row], kind: Kind) -> dict[int, Sources]:
        """Those of one kind that rows name as query sources, by row; what a row cannot see is left out."""
        places = [
            (row, source.neuron, position)
            for row, each in rows.items()
            for source in each.options.query_from
            if _kind(source.neuron) is kind
            for position in _positions(source, each.position)
        ]
        scored = self._scored(kind, places)
        which, layers, units, positions = self._columns(places)
        mine = {row: which == row for row in rows}
        return {row: Sources(layers[own], units[own], positions[own], scored.scores[own]) for row, own in mine.items()}

    def _scored(self, kind: Kind, places: Sequence[tuple[int, Neuron, int]], *, over_positions: bool = False) -> Scored:
        neurons = self._grids.of(kind, over_positions=over_positions)
        rows, layers, units, positions = self._columns(places)
        one = neurons.positions == 1
        at = Places(neurons, rows, layers, units, np.zeros_like(positions) if one else positions)
        return self._exact.of([at], FROM_INCREASE[A])[0]

    def _columns(self, places: Sequence[tuple[int, Neuron, int]]) -> tuple[Ids, Ids, Ids, Ids]:
        numbers = [(row, neuron.layer, self._view.unit(neuron), position) for row, neuron, position in places]
        columns: Array = np.array(numbers, dtype=np.int64).reshape(-1, 4).T
        return columns[0], columns[1], columns[2], columns[3]


def _kind(neuron: Neuron) -> Kind:
    return Kind.FFN if isinstance(neuron, FfnNeuron) else Kind.ATTENTION


def _positions(source: QuerySource, explained: int) -> Iterator[int]:
    """Where it reads: an FFN neuron at the explained position, an attention neuron at its own or at each."""
    if isinstance(source.neuron, FfnNeuron):
        yield explained
    elif source.position is None:
        yield from range(explained + 1)
    elif source.position <= explained:
        yield source.position
