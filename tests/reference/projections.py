"""What neurons, heads and positions mean in the vocabulary: read through the unembedding, unscaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron
from neuron_attribution.requests import Side, Subkey
from torch import Tensor

from reference.experts import ffn_name
from reference.oracle import Explained
from reference.unembedding import project
from reference.weights import Weights


def project_neuron(weights: Weights, neuron: Neuron, side: Side = Side.SUBVALUE, subkey: Subkey = Subkey.UP) -> Tensor:
    """A neuron's subvalue, or its subkey read through the weight of the norm before its block. [V]"""
    return project(weights, _vector(weights, neuron, side, subkey))


def project_subvalues(weights: Weights, neurons: Sequence[Neuron]) -> Tensor:
    """Several neurons' subvalues at once. [n, V]"""
    if not neurons:
        return torch.empty(0, len(weights.unembedding), dtype=torch.float64)
    return project(weights, torch.stack([_vector(weights, each, Side.SUBVALUE, Subkey.UP) for each in neurons]))


def project_through(weights: Weights, neuron: FfnNeuron, head: Head) -> Tensor:
    """An FFN neuron's subvalue through a head: norm without bias, value rows, output rows, vocabulary. [V]"""
    subvalue = weights.layers[neuron.layer].down[_unit(weights, neuron)]
    normed = weights.layers[head.layer].attention_norm.without_bias(subvalue)
    read = weights.value_rows(head.layer, head.head) @ normed
    return project(weights, read @ weights.output_rows(head.layer, head.head))


def project_positions(explained: Explained, layer: int, head: int, positions: Sequence[int]) -> Tensor:
    """At source positions: the layer's input, its attention-only part, what the head adds from there. [n, 3, V]"""
    at = list(positions)
    attention_only = torch.zeros_like(explained.layers[0].input[at])
    for lower in range(layer):
        attention_only = attention_only + explained.layers[lower].attention[at]
    vectors = (explained.layers[layer].input[at], attention_only, explained.position_vectors(layer, head)[at])
    return project(explained.weights, torch.stack(vectors, dim=1))


def _vector(weights: Weights, neuron: Neuron, side: Side, subkey: Subkey) -> Tensor:
    layer = weights.layers[neuron.layer]
    if isinstance(neuron, AttentionNeuron):
        if side is Side.SUBVALUE:
            return weights.output_rows(neuron.layer, neuron.head)[neuron.index]
        return weights.value_rows(neuron.layer, neuron.head)[neuron.index] * layer.attention_norm.weight
    if side is Side.SUBVALUE:
        return layer.down[_unit(weights, neuron)]
    rows = layer.gate if subkey is Subkey.GATE else layer.up
    return rows[_unit(weights, neuron)] * layer.ffn_norm.weight


def _unit(weights: Weights, neuron: FfnNeuron) -> int:
    return weights.layers[neuron.layer].unit(ffn_name(neuron))
