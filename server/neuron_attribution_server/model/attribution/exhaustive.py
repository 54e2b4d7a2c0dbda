"""Every neuron scored against the whole vocabulary, in chunks: the oracle that bounded search must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.objectives import Objective
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.attribution.value_neurons import ValueNeurons

UNITS_AT_ONCE = 256


def exhaustive_increases(
    objective: Objective, unembedding: Unembedding, neurons: ValueNeurons, scale: Tensor, first_base: int
) -> Tensor:
    """f(base + v) - f(base) of every neuron of one row, in the order of ids, zero in gaps.

    first_base is the row's first flat base index.
    """
    layers = []
    for layer in range(neurons.layers):
        coefficients = neurons.coefficients(slice(layer, layer + 1))[0] / scale
        base = first_base + neurons.first_base + layer
        chunks = [chunk for rows in neurons.layer_subvalues(layer).chunks() for chunk in rows.split(UNITS_AT_ONCE)]
        scores = [
            objective.multiples(unembedding.fold(rows), mine, base)
            for rows, mine in zip(chunks, _split_like(coefficients, chunks), strict=True)
        ]
        layers.append(torch.cat(scores).T)
    return stack_layers(layers).transpose(1, 2).flatten()


def _split_like(coefficients: Tensor, chunks: Sequence[Tensor]) -> Sequence[Tensor]:
    sizes = [len(chunk) for chunk in chunks]
    parts: Sequence[Tensor] = coefficients[: sum(sizes)].split(sizes)
    return parts
