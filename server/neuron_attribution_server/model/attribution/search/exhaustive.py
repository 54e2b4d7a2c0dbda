"""Every neuron scored against the whole vocabulary, in chunks: the oracle that bounded search must agree with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.objectives import Objective
from neuron_attribution_server.model.attribution.search.value_neurons import ValueNeurons
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.attribution.unembedding import Unembedding

UNITS_AT_ONCE = 256


def exhaustive_increases(
    objective: Objective, unembedding: Unembedding, neurons: ValueNeurons, row: int, scale: Tensor
) -> Tensor:
    """f(base + v) - f(base) of every neuron of a row with a final norm's scale [], [layers, units, positions].

    Zero in gaps.
    """
    layers = []
    for layer in range(neurons.layers):
        coefficients = neurons.by_unit(row, slice(layer, layer + 1))[0] / scale
        base = row * objective.values.shape[1] + neurons.first_base + layer
        layers.append(neurons.subvalues[layer].each(_scored(objective, unembedding, coefficients, base)))
    return stack_layers(layers).transpose(1, 2)


def _scored(
    objective: Objective, unembedding: Unembedding, coefficients: Tensor, base: int
) -> Callable[[Tensor], Tensor]:
    """Scores [positions, n_i] of subvalues [n_i, d], which come one after another as their coefficients lie."""
    place = 0

    def scored(subvalues: Tensor) -> Tensor:
        nonlocal place
        found = []
        for rows in subvalues.split(UNITS_AT_ONCE):
            mine = coefficients[place : place + len(rows)]
            place += len(rows)
            found.append(objective.multiples(unembedding.fold(rows), mine, base))
        return torch.cat(found).T

    return scored
