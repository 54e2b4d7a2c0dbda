"""The value neurons of several rows taken together: one score each, the weighted sum of those at the rows.

Bounds add: with |w| of every row's slack, and a negative weight's bound from below in place of the one from above. In
float32 the sum of R rows' main terms may be off by (R + 8) u of what they add up to without their signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, Ids, on_device
from neuron_attribution_server.model.attribution.search.exact_scores import Places
from neuron_attribution_server.model.attribution.search.first_order import FirstOrder
from neuron_attribution_server.model.attribution.search.value_neurons import Function, NeuronGrid, ValueNeurons
from neuron_attribution_server.model.attribution.unembedding import UNIT_ROUNDOFF

MORE_ROUNDINGS = 8
"""Roundings of a term and of what is added to the sum, beside one for each row."""
GROWN = 1 + 2.0**-10
"""Sums of positive terms times this are at least the true ones, of up to thousands of rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Rows that follow each other, and what each one's scores are multiplied by before they are added, [R]."""

    rows: slice
    weights: Array


class SummedNeurons(NeuronGrid):
    """Neurons as one row has them, the sum of rows that are taken together: positions up to the last that one sees."""

    def __init__(self, neurons: ValueNeurons, together: Together, device: torch.device) -> None:
        self._neurons, self._together = neurons, together
        self._weights = on_device(together.weights.astype(np.float32), device)
        self._lengths = neurons.lengths[together.rows]
        super().__init__(neurons.subvalues, [max(self._lengths)], neurons.blocks, neurons.first_base, device)

    def bounds(self, first_order: FirstOrder, layers: slice, sign: int, ranges: Tensor | None) -> Tensor:
        """At least sign * score of every neuron of some layers, as values are laid out, of one row.

        As FirstOrder.scores has it for single rows.
        """
        rows, weights = self._together.rows, self._weights[:, None, None]
        scale, products = first_order.scale[rows, None, None], first_order.products[rows, layers]
        roundings = (len(self._lengths) + MORE_ROUNDINGS) * UNIT_ROUNDOFF
        slack = (first_order.slack[rows, layers] + roundings * products.abs()).mul_(GROWN * weights.abs())
        bounds = self._summed(layers, sign * weights * products, torch.positive)
        bounds += self._summed(layers, slack, torch.abs)
        bent = torch.zeros_like(products)
        if ranges is not None:
            bent += (-sign * weights).clamp_min(0) * (ranges[layers] / scale).square() / 8
        if first_order.bends is not None:
            bent += weights.abs() * first_order.bends[layers] / scale.square()
        if ranges is not None or first_order.bends is not None:
            bounds += self._summed(layers, bent.mul_(GROWN), torch.square)
        return bounds.add_(float(np.abs(self._together.weights).sum()) * first_order.constant)[None]

    def falls(self, sign: int) -> bool:
        """Whether any row needs a bound from below."""
        return bool((sign * self._together.weights < 0).any())

    def places(self, ids: Ids) -> tuple[list[Places], list[Ids]]:
        """Where neurons are at each row, and which of them the row sees."""
        layers, units, positions = self.locate(ids)
        every, seen = [], []
        for row, length in enumerate(self._lengths, self._together.rows.start):
            mine = np.flatnonzero(positions < length)
            seen.append(mine)
            columns = (column[mine] for column in (layers, units, positions))
            every.append(Places(self._neurons, np.full_like(mine, row), *columns))
        return every, seen

    def sum(self, scores: Array) -> Array:
        """The scores of neurons, from those at each row [R, C], in float64."""
        summed: Array = self._together.weights.astype(np.float64) @ scores
        return summed

    def _summed(self, layers: slice, of_units: Tensor, function: Function) -> Tensor:
        return self._neurons.sums(self._together.rows, layers, self.positions, of_units, function)


def stacked(found: Sequence[Array], seen: Sequence[Ids], count: int) -> Array:
    """What rows have of the neurons that they see as one array, [R, C], zero where one sees it not."""
    whole = np.zeros((len(found), count), dtype=np.float64)
    for row, mine, values in zip(whole, seen, found, strict=True):
        row[mine] = values
    return whole
