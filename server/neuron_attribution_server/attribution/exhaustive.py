"""Every neuron scored against the whole vocabulary, in chunks: the oracle that bounded search must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from neuron_attribution_server.attribution.objectives import Objective
from neuron_attribution_server.attribution.unembedding import Unembedding
from neuron_attribution_server.attribution.value_neurons import ValueNeurons

UNITS_AT_ONCE = 256


def exhaustive_increases(
    objective: Objective, unembedding: Unembedding, neurons: ValueNeurons, scale: Tensor, first_base: int
) -> Tensor:
    """f(base + v) - f(base) of every neuron of one row, [total]; first_base is the row's first flat base index."""
    scores = []
    for layer in range(neurons.layers):
        coefficients = neurons.coefficients(slice(layer, layer + 1))[0] / scale
        folded = unembedding.fold(neurons.layer_subvalues(layer))
        base = first_base + neurons.first_base + layer
        for unit in range(0, neurons.units, UNITS_AT_ONCE):
            chunk = slice(unit, unit + UNITS_AT_ONCE)
            scores.append(objective.multiples(folded[chunk], coefficients[chunk], base).flatten())
    return torch.cat(scores)
