"""The value neurons of explained rows: their ids, what multiplies their subvalues, and the highest of their values.

Every kind is a grid of layers x units x positions; FFN neurons, and attention neurons that are taken over all source
positions together, have one position. Ids count in the order of a ranking's ties: FFN neurons by (layer, index),
attention neurons by (layer, head, index, source position). Layers of fewer units than the widest leave gaps in the
grid, and so do rows that see fewer positions than the longest; no ranking returns one.

Values of many neurons are laid out [rows, layers, blocks, positions, units of a block], which a head's values are in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.host import Array, Ids, columns_on_device, on_device, to_host
from neuron_attribution_server.model.attribution.search.ranking import Ranked, highest
from neuron_attribution_server.model.attribution.states import RowStates
from neuron_attribution_server.model.attribution.subvalues import Subvalues

BOUNDS_AT_ONCE = 1 << 24
"""Bounds held at once; rows, and layers where one row has more, are taken in groups of at most so many."""

Values = Callable[[slice, slice], Tensor]
"""Values of some rows and layers, [rows, layers, blocks, positions, units of a block]."""


class ValueNeurons(ABC):
    """Neurons of one kind at every row of a group."""

    def __init__(
        self, subvalues: Sequence[Subvalues], lengths: Sequence[int], blocks: int, first_base: int, device: torch.device
    ) -> None:
        """`lengths` are the positions that each row has of them, `blocks` how many divide the units of a layer."""
        self.layers = len(subvalues)
        self.units = max(map(len, subvalues))
        self.lengths = lengths
        self.positions = max(lengths)
        self.blocks = blocks
        self.first_base = first_base
        self.subvalues = subvalues
        self._device = device

    def total(self, row: int) -> int:
        """How many there are at a row."""
        return sum(layer.count for layer in self.subvalues) * self.lengths[row]

    @abstractmethod
    def coefficients(self, rows: slice, layers: slice) -> Tensor:
        """What multiplies the subvalues, [rows, layers, blocks, positions, units of a block]."""

    @abstractmethod
    def coefficients_at(self, rows: Tensor, layers: Tensor, units: Tensor, positions: Tensor) -> Tensor:
        """What multiplies the subvalues of some neurons, [C]."""

    def coefficients_of(self, row: int, ids: Ids) -> Array:
        """What multiplies the subvalues of some neurons of a row, [C]."""
        at = columns_on_device([np.full_like(ids, row), *self.locate(ids)], self._device)
        return to_host([self.coefficients_at(*at)])[0]

    def locate(self, ids: Ids) -> tuple[Ids, Ids, Ids]:
        """The layers, units and positions of ids."""
        unit = ids // self.positions
        return unit // self.units, unit % self.units, ids % self.positions

    def laid_out(self, of_units: Tensor) -> Tensor:
        """Numbers of units, [..., n], as they stand beside values: [..., blocks, 1, units of a block]."""
        found: Tensor = of_units.unflatten(-1, (self.blocks, 1, self.units // self.blocks))
        return found

    def by_unit(self, row: int, layers: slice) -> Tensor:
        """A row's coefficients as its ids count, [layers, units, the row's positions]."""
        values = self.coefficients(slice(row, row + 1), layers)[0].transpose(2, 3)
        own: Tensor = values.flatten(1, 2)[..., : self.lengths[row]]
        return own

    def rank(self, row: int, scores: Callable[[slice], Tensor], k: int, sign: int) -> Ranked:
        """One end of a row's ranking by scores that are all known: [layers, units, positions] of some layers."""
        k, length = min(k, self.total(row)), self.lengths[row]
        found = []
        for layers in checked(self._layer_groups()):
            values = (sign * scores(layers)).masked_fill(self._missing_units(layers)[..., None], -torch.inf)
            places, values = highest(values.flatten()[None], k)
            found.append((places[0] + layers.start * self.units * length, values[0]))
        places, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        best, values = highest(values[None], k)
        ids, ranked = to_host([places[best[0]], values[0]])
        return Ranked(ids // length * self.positions + ids % length, sign * ranked, self.total(row))

    def top(self, rows: Sequence[int], count: int, values: Values) -> tuple[Ids, Array]:
        """The ids of the `count` highest values of each row, and the values, [rows, count], in descending order.

        What a layer or a row has no neuron for is below all others.
        """
        found = to_host([part for group in checked(self._row_groups(rows)) for part in self._top(group, count, values)])
        ids = np.concatenate(found[::2])
        return self._as_ids(ids), np.concatenate(found[1::2])

    def _top(self, rows: slice, count: int, values: Values) -> tuple[Tensor, Tensor]:
        """Places in the layout, and values, of some rows that follow each other."""
        found = []
        for layers in checked(self._layer_groups()):
            some = self._without_gaps(values(rows, layers), rows, layers).flatten(1)
            best = some.topk(min(count, some.shape[1]))
            found.append((best.indices + layers.start * self.units * self.positions, best.values))
        if len(found) == 1:
            return found[0]
        places, highest_values = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        best = highest_values.topk(min(count, highest_values.shape[1]))
        return places.gather(1, best.indices), best.values

    def _row_groups(self, rows: Sequence[int]) -> Iterator[slice]:
        """Runs of rows that follow each other, whose values are held at once."""
        most = max(1, BOUNDS_AT_ONCE // (self.layers * self.units * self.positions))
        start = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or rows[end] != rows[end - 1] + 1 or end - start == most:
                yield slice(rows[start], rows[end - 1] + 1)
                start = end

    def _layer_groups(self) -> list[slice]:
        """Layers whose values are held at once."""
        step = max(1, BOUNDS_AT_ONCE // (self.units * self.positions))
        return [slice(start, min(start + step, self.layers)) for start in range(0, self.layers, step)]

    def _without_gaps(self, values: Tensor, rows: slice, layers: slice) -> Tensor:
        if any(layer.count < self.units for layer in self.subvalues):
            values = values.masked_fill(self.laid_out(self._missing_units(layers)), -torch.inf)
        if min(self.lengths[rows]) < self.positions:
            lengths = on_device(np.array(self.lengths[rows]), self._device)
            beyond = torch.arange(self.positions, device=self._device) >= lengths[:, None]
            values = values.masked_fill(beyond[:, None, None, :, None], -torch.inf)
        return values

    def _missing_units(self, layers: slice) -> Tensor:
        """Which units layers do not have, [layers, units]."""
        widths = on_device(np.array([len(layer) for layer in self.subvalues[layers]]), self._device)
        found = torch.arange(self.units, device=self._device) >= widths[:, None]
        for number, layer in enumerate(self.subvalues[layers]):
            if layer.missing is not None:
                found[number, : len(layer)] |= layer.missing.to(self._device)
        return found

    def _as_ids(self, places: Ids) -> Ids:
        """Places in the layout as ids."""
        width = self.units // self.blocks
        rest, inside = places // width, places % width
        block, position = rest // self.positions, rest % self.positions
        unit: Ids = block * width + inside
        return unit * self.positions + position


class WholeValueNeurons(ValueNeurons):
    """Neurons of one coefficient each, [E, L, n]: one position, the explained one."""

    def __init__(self, subvalues: Sequence[Subvalues], coefficients: Tensor, first_base: int) -> None:
        super().__init__(subvalues, [1] * len(coefficients), 1, first_base, coefficients.device)
        self._coefficients = coefficients

    def coefficients(self, rows: slice, layers: slice) -> Tensor:
        """[rows, layers, 1, 1, n]"""
        return self._coefficients[rows, layers, None, None]

    def coefficients_at(self, rows: Tensor, layers: Tensor, units: Tensor, positions: Tensor) -> Tensor:
        """[C]"""
        del positions
        return self._coefficients[rows, layers, units]


class AttentionValueNeurons(ValueNeurons):
    """The attention neurons, one for each source position."""

    def __init__(self, subvalues: Sequence[Subvalues], states: RowStates) -> None:
        heads = states.head_outputs.shape[2]
        super().__init__(subvalues, states.lengths, heads, 0, states.head_outputs.device)
        self._states = states
        self._head_size = states.head_outputs.shape[-1]
        self._group = heads // states.values.shape[2]

    def coefficients(self, rows: slice, layers: slice) -> Tensor:
        """alpha * v, gated, [rows, layers, H, T, D]."""
        mixing = self._states.mixing[rows, layers, :, : self.positions].unflatten(2, (-1, self._group))
        values = self._states.values_of(rows, layers, self.positions).float()
        found: Tensor = (mixing[..., None] * values[:, :, :, None]).flatten(2, 3)
        return found if self._states.gates is None else found.mul_(self._states.gates[rows, layers, :, None])

    def coefficients_at(self, rows: Tensor, layers: Tensor, units: Tensor, positions: Tensor) -> Tensor:
        """alpha * v, gated, [C]."""
        heads, dimensions = units // self._head_size, units % self._head_size
        mixing = self._states.mixing[rows, layers, heads, positions]
        values = self._states.values[self._states.sequences[rows], layers, heads // self._group, positions, dimensions]
        found: Tensor = mixing * values.float()
        return found if self._states.gates is None else found * self._states.gates[rows, layers, heads, dimensions]
