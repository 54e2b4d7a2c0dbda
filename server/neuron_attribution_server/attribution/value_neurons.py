"""The value neurons of one explained row: their ids, subvalues, coefficients and first-order bounds.

Ids count in the order of a ranking's ties: FFN neurons by (layer, index), attention neurons by (layer, head, index,
source position). Every kind is a grid of layers x units x positions; FFN neurons have one position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.attribution.states import RowStates

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

    def increase(self, layers: slice, coefficients: Tensor, sign: int) -> Tensor:
        """Bounds of the increase, from above (sign 1) or below (-1), for coefficients [layers, n, positions].

        Above by Jensen's inequality, below by Hoeffding's lemma: log E[e^D] <= E[D] + range(D)^2 / 8.
        """
        bounds = coefficients * self.products[layers, :, None]
        bounds.addcmul_(coefficients.abs(), self.slack[layers, :, None], value=sign)
        if sign < 0 and self.ranges is not None:
            bounds.sub_((coefficients * self.ranges[layers, :, None]).square_(), alpha=0.125)
        return bounds.add_(sign * self.constant)


class ValueNeurons(ABC):
    """Neurons of one kind at one explained row."""

    def __init__(self, subvalues: Sequence[Tensor], positions: int, first_base: int) -> None:
        self.layers = len(subvalues)
        self.units = len(subvalues[0])
        self.positions = positions
        self.total = self.layers * self.units * positions
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

    def layer_subvalues(self, layer: int) -> Tensor:
        """The subvalues of a layer's units, [units, d]."""
        return self._subvalues[layer].float()

    def highest(self, count: int, bounds: FirstOrder, score: FromIncrease, sign: int) -> tuple[Tensor, Tensor]:
        """The `count` highest bounds of sign * score and their ids, in descending order."""
        step = max(1, BOUNDS_AT_ONCE // (self.units * self.positions))
        groups = [
            self._highest(slice(start, start + step), count, bounds, score, sign)
            for start in range(0, self.layers, step)
        ]
        ids, values = (torch.cat(parts) for parts in zip(*groups, strict=True))
        top = values.topk(min(count, len(values)))
        return ids[top.indices], top.values

    def _highest(
        self, layers: slice, count: int, bounds: FirstOrder, score: FromIncrease, sign: int
    ) -> tuple[Tensor, Tensor]:
        increases = bounds.increase(layers, self.coefficients(layers), sign)
        values = sign * score(increases, bounds.base_values[layers, None, None])
        top = values.flatten().topk(min(count, values.numel()))
        return top.indices + layers.start * self.units * self.positions, top.values


class FfnValueNeurons(ValueNeurons):
    """The FFN neurons: one position, the explained one."""

    def __init__(self, subvalues: Sequence[Tensor], states: RowStates, row: int) -> None:
        super().__init__(subvalues, 1, first_base=len(subvalues) + 1)
        self._coefficients = states.coefficients[row]

    def coefficients(self, layers: slice) -> Tensor:
        """m, [layers, N, 1]."""
        return self._coefficients[layers, :, None]

    def coefficients_of(self, ids: Tensor) -> Tensor:
        """m, [C]."""
        return self._coefficients.flatten()[ids]


class AttentionValueNeurons(ValueNeurons):
    """The attention neurons, one for each source position."""

    def __init__(self, subvalues: Sequence[Tensor], states: RowStates, row: int) -> None:
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
        attention = self._states.attention[self._row, layers, heads, positions]
        values = self._states.values[self._row]
        key_value_heads = heads // (self._states.attention.shape[2] // values.shape[1])
        return attention * values[layers, key_value_heads, positions, dimensions].float()


def gather_rows(matrices: Sequence[Tensor], indices: Tensor, rows: Tensor) -> Tensor:
    """Row rows[c] of matrix indices[c] for every c, [C, d]: one gather per matrix that is needed."""
    gathered = torch.empty(len(rows), matrices[0].shape[1], device=rows.device)
    for index in indices.unique().tolist():
        mine = indices == index
        gathered[mine] = matrices[index][rows[mine]].float()
    return gathered
