"""Every neuron scored against the whole vocabulary, in chunks: the oracle that bounded search must agree with."""

from __future__ import annotations

from collections.abc import Sequence

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
        chunks = [chunk for rows in neurons.subvalues[layer].chunks() for chunk in rows.split(UNITS_AT_ONCE)]
        scores = [
            objective.multiples(unembedding.fold(rows), mine, base)
            for rows, mine in zip(chunks, _split_like(coefficients, chunks), strict=True)
        ]
        layers.append(torch.cat(scores).T)
    return stack_layers(layers).transpose(1, 2)


def _split_like(coefficients: Tensor, chunks: Sequence[Tensor]) -> Sequence[Tensor]:
    sizes = [len(chunk) for chunk in chunks]
    parts: Sequence[Tensor] = coefficients[: sum(sizes)].split(sizes)
    return parts
