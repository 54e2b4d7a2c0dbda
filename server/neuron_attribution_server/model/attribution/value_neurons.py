"""The value neurons of one explained row: their ids, subvalues, coefficients and first-order bounds.

Ids count in the order of a ranking's ties: FFN neurons by (layer, index), attention neurons by (layer, head, index,
source position). Every kind is a grid of layers x units x positions; FFN neurons, and attention neurons that are taken
over all source positions together, have one position. Layers of fewer units than the widest leave gaps in the grid,
which no ranking returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.ranking import Ranked, all_scored
from neuron_attribution_server.model.attribution.states import RowStates
from neuron_attribution_server.model.attribution.subvalues import Subvalues

BOUNDS_AT_ONCE = 1 << 24
"""Bounds held at once; layers are taken in groups of at most so many."""

FromIncrease = Callable[[Tensor, Tensor], Tensor]
"""A score from the increase of the log probability and the log probability at the base; monotone in the increase."""


@dataclass(frozen=True, slots=True, eq=False)
class FirstOrder:
    """What bounds one row's neurons of one kind: n units per layer."""

    products: Tensor
    """<slope, subvalue>, [L, n]."""
    slack: Tensor
    """Rounding slack of a unit coefficient, [L, n]."""
    constant: float
    """Rounding slack of every neuron."""
    ranges: Tensor | None
    """Largest minus smallest logit that a unit coefficient adds, [L, n]; None where the objective is linear."""
    base_values: Tensor
    """The objective at each layer's base, [L]."""
    bends: Tensor | None = None
    """How far the objective may bend away from its slope for a unit coefficient, [L, n]; None where it is concave."""

    def increase(self, layers: slice, coefficients: Tensor, sign: int) -> Tensor:
        """Bounds of the increase, from above (sign 1) or below (-1), for coefficients [layers, n, positions].

        Above by Jensen's inequality, below by Hoeffding's lemma: log E[e^D] <= E[D] + range(D)^2 / 8. Logits with a
        soft-cap may bend further (see capped_objectives).
        """
        bounds = coefficients * self.products[layers, :, None]
        bounds.addcmul_(coefficients.abs(), self.slack[layers, :, None], value=sign)
        if sign < 0 and self.ranges is not None:
            bounds.sub_((coefficients * self.ranges[layers, :, None]).square_(), alpha=0.125)
        if self.bends is not None:
            bounds.addcmul_(coefficients.square(), self.bends[layers, :, None], value=sign)
        return bounds.add_(sign * self.constant)


class ValueNeurons(ABC):
    """Neurons of one kind at one explained row."""

    def __init__(self, subvalues: Sequence[Subvalues], positions: int, first_base: int) -> None:
        self.layers = len(subvalues)
        self.units = max(map(len, subvalues))
        self.positions = positions
        self.total = sum(map(len, subvalues)) * positions
        self._subvalues = subvalues
        self.first_base = first_base

    @abstractmethod
    def coefficients(self, layers: slice) -> Tensor:
        """What multiplies the subvalues, [layers, units, positions]."""

    @abstractmethod
    def coefficients_of(self, ids: Tensor) -> Tensor:
        """What multiplies the subvalues of some neurons, [C]."""

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layers, units and positions of ids."""
        unit = ids // self.positions
        return unit // self.units, unit % self.units, ids % self.positions

    def bases(self, ids: Tensor) -> Tensor:
        """The base states of ids, as indices within the row's bases."""
        return self.locate(ids)[0] + self.first_base

    def subvalues(self, ids: Tensor) -> Tensor:
        """The subvalues of ids, [C, d]."""
        layers, units, _ = self.locate(ids)
        return gather_rows(self._subvalues, layers, units)

    def layer_subvalues(self, layer: int) -> Subvalues:
        """The subvalues of a layer's units."""
        return self._subvalues[layer]

    def rank(self, scores: Callable[[slice], Tensor], k: int, sign: int) -> Ranked:
        """One end of the ranking of scores that are all known, [layers, units, positions] of some layers at a time."""
        found = [
            all_scored(self._without_gaps(sign * scores(layers), layers).flatten(), min(k, self.total))
            for layers in checked(self._groups())
        ]
        starts = [layers.start * self.units * self.positions for layers in self._groups()]
        ids = torch.cat([each.ids + start for each, start in zip(found, starts, strict=True)])
        best = all_scored(torch.cat([each.scores for each in found]), min(k, self.total))
        return Ranked(ids[best.ids], sign * best.scores, self.total)

    def top(self, count: int, values: Callable[[slice], Tensor]) -> tuple[Tensor, Tensor]:
        """The ids of the `count` highest values, [layers, units, positions] of some layers at a time, and the values.

        In descending order; what a layer has no unit for is below all others.
        """
        found = [self._top(layers, count, values(layers)) for layers in checked(self._groups())]
        ids, highest = (torch.cat(parts) for parts in zip(*found, strict=True))
        best = highest.topk(min(count, len(highest)))
        return ids[best.indices], best.values

    def highest(self, count: int, bounds: FirstOrder, score: FromIncrease, sign: int) -> tuple[Tensor, Tensor]:
        """The `count` highest bounds of sign * score and their ids, in descending order."""

        def values(layers: slice) -> Tensor:
            increases = bounds.increase(layers, self.coefficients(layers), sign)
            return sign * score(increases, bounds.base_values[layers, None, None])

        return self.top(count, values)

    def _groups(self) -> list[slice]:
        """Layers whose values are held at once."""
        step = max(1, BOUNDS_AT_ONCE // (self.units * self.positions))
        return [slice(start, min(start + step, self.layers)) for start in range(0, self.layers, step)]

    def _top(self, layers: slice, count: int, values: Tensor) -> tuple[Tensor, Tensor]:
        top = self._without_gaps(values, layers).flatten().topk(min(count, values.numel()))
        return top.indices + layers.start * self.units * self.positions, top.values

    def _without_gaps(self, values: Tensor, layers: slice) -> Tensor:
        """Values [layers, units, positions], below all others where a layer has no such unit."""
        if self.total == self.layers * self.units * self.positions:
            return values
        widths = torch.tensor([len(layer) for layer in self._subvalues[layers]], device=values.device)
        gaps = torch.arange(self.units, device=values.device) >= widths[:, None]
        return values.masked_fill(gaps[:, :, None], -torch.inf)


class WholeValueNeurons(ValueNeurons):
    """Neurons of one coefficient each, [L, n]: one position, the explained one."""

    def __init__(self, subvalues: Sequence[Subvalues], coefficients: Tensor, first_base: int) -> None:
        super().__init__(subvalues, 1, first_base)
        self._coefficients = coefficients

    def coefficients(self, layers: slice) -> Tensor:
        """[layers, n, 1]"""
        return self._coefficients[layers, :, None]

    def coefficients_of(self, ids: Tensor) -> Tensor:
        """[C]"""
        return self._coefficients.flatten()[ids]


class AttentionValueNeurons(ValueNeurons):
    """The attention neurons, one for each source position."""

    def __init__(self, subvalues: Sequence[Subvalues], states: RowStates, row: int) -> None:
        super().__init__(subvalues, states.lengths[row], first_base=0)
        self._states = states
        self._row = row
        self._head_size = states.head_outputs.shape[-1]

    def coefficients(self, layers: slice) -> Tensor:
        """alpha * v, [layers, H * D, T]."""
        return self._states.source_values(self._row, layers).flatten(1, 2)

    def coefficients_of(self, ids: Tensor) -> Tensor:
        """alpha * v, [C]."""
        layers, units, positions = self.locate(ids)
        heads, dimensions = units // self._head_size, units % self._head_size
        mixing = self._states.mixing[self._row, layers, heads, positions]
        values = self._states.values[self._row]
        key_value_heads = heads // (self._states.mixing.shape[2] // values.shape[1])
        return mixing * values[layers, key_value_heads, positions, dimensions].float()


def gather_rows(layers: Sequence[Subvalues], indices: Tensor, rows: Tensor) -> Tensor:
    """Row rows[c] of layer indices[c] for every c, [C, d]: one gather per layer that is needed."""
    wanted = indices.unique().tolist()
    if not wanted:
        return layers[0].rows(rows)
    places = [(indices == index).nonzero().squeeze(1) for index in wanted]
    found = [layers[index].rows(rows[place]) for index, place in zip(wanted, places, strict=True)]
    return torch.cat(found)[torch.cat(places).argsort()]
