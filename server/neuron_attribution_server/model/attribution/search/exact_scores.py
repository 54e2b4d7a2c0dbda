"""Exact scores of some value neurons of any rows, layers and kinds, from one product with the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.host import Array, Ids, columns_on_device, on_device, to_host
from neuron_attribution_server.model.attribution.methods import FromIncrease
from neuron_attribution_server.model.attribution.objectives import Multiples, Vectors, is_shared
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.search.value_neurons import ValueNeurons
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.subvalues import gathered, join

HELD = 1 << 24
"""Numbers of neurons' vectors that are held at once, but for those of one group of places."""
_COLUMNS = ("rows", "layers", "units", "positions")


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Some neurons of one kind: the row, layer, unit and source position of each, [C]."""

    neurons: ValueNeurons
    rows: Ids
    layers: Ids
    units: Ids
    positions: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The scores of neurons and what multiplies their subvalues, [C] each."""

    scores: Array
    coefficients: Array


class ExactScores:
    """Scores neurons by an objective's increase."""

    def __init__(self, weights: Weights, scale: Tensor, increases: PooledIncreases) -> None:
        self._weights = weights
        self._scale = scale
        self._increases = increases

    def of(self, places: Sequence[Places], score: FromIncrease) -> list[Scored]:
        """The scores of each group of places, in its order."""
        return self.ask(places, score)()

    def ask(self, places: Sequence[Places], score: FromIncrease) -> Callable[[], list[Scored]]:
        """What gives them later, together with what else is asked for; of very many in turn, and at once."""
        most = max(1, HELD // self._weights.unembedding.weight.shape[1])
        if sum(len(each.rows) for each in places) <= most:
            return self._ask(places, score)
        found = [scored for some in checked(_in_turn(places, most)) for scored in self._ask(some, score)()]
        return lambda: found

    def _ask(self, places: Sequence[Places], score: FromIncrease) -> Callable[[], list[Scored]]:
        counts, values = [len(each.rows) for each in places], self._increases.objective.values
        if not any(counts):
            return lambda: [Scored(*np.empty((2, 0), dtype=np.float32)) for _ in places]
        kinds = list(dict.fromkeys(each.neurons for each in places))
        kind = np.repeat([kinds.index(each.neurons) for each in places], counts)
        rows, layers, units, positions = (np.concatenate([getattr(each, name) for each in places]) for name in _COLUMNS)
        order = np.lexsort((layers, kind))  # a gather for each layer of a kind
        first = np.array([neurons.first_base for neurons in kinds])[kind]
        bases = rows * values.shape[1] + first + layers
        sent = columns_on_device([each[order] for each in (rows, layers, units, positions, bases)], self._scale.device)
        ends = np.searchsorted(kind[order], np.arange(len(kinds) + 1)).tolist()
        coefficients = [
            neurons.coefficients_at(*(column[start:end] for column in sent[:4]))
            for neurons, (start, end) in zip(kinds, pairwise(ends), strict=True)
        ]
        factors = join(coefficients, 0)
        scaled = factors / self._scale[sent[0]]
        first, which = _distinct(kind[order], layers[order], units[order])
        vectors: Vectors
        if is_shared(len(order), len(first)):
            own = order[first]
            ends = np.searchsorted(kind[own], np.arange(len(kinds) + 1)).tolist()
            folded = self._folded(kinds, ends, layers[own], on_device(units[own], self._scale.device))
            vectors = Multiples(folded, on_device(which, self._scale.device), scaled)
        else:
            vectors = self._folded(kinds, ends, layers[order], sent[2]) * scaled[:, None]
        increases, places_of = self._increases.ask(vectors, sent[4]), np.argsort(order)

        def result() -> list[Scored]:
            found = to_host([score(increases(), values.flatten()[sent[4]]), factors])
            split = [np.split(column[places_of], np.cumsum(counts)[:-1]) for column in found]
            return [Scored(*pair) for pair in zip(*split, strict=True)]

        return result

    def _folded(self, kinds: Sequence[ValueNeurons], ends: Sequence[int], layers: Ids, units: Tensor) -> Tensor:
        """Subvalues of ascending layers of each kind, of which `ends` says where they are, [C, d]."""
        parts = [slice(*each) for each in pairwise(ends)]
        found = [
            gathered(neurons.subvalues, layers[part], units[part]) for neurons, part in zip(kinds, parts, strict=True)
        ]
        return self._weights.unembedding.fold(join(found, 0))


def _distinct(kind: Ids, layers: Ids, units: Ids) -> tuple[Ids, Ids]:
    """Where each neuron is first, in the order of kinds and layers, and which of these every place is."""
    numbers = (kind * (layers.max() + 1) + layers) * (units.max() + 1) + units
    _, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    return first, which


def _in_turn(places: Sequence[Places], most: int) -> Iterator[list[Places]]:
    """Groups of places, in order, of at most so many neurons together; at least one."""
    together: list[Places] = []
    for each in places:
        if together and sum(len(other.rows) for other in (*together, each)) > most:
            yield together
            together = []
        together.append(each)
    yield together
