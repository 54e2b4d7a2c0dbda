"""The forward pass of one unpadded prompt, step by step in float64.

Written out instead of hooked: transformers computes norms, rotary angles and the attention softmax in float32 whatever
the model's dtype. The oracle's own tests check that the logits are the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.weights import Layer, Weights


@dataclass(frozen=True)
class LayerStates:
    """One layer at every position. T positions, H heads, D head size, N FFN neurons."""

    input: Tensor
    """x_l [T, d]"""
    attention_weights: Tensor
    """α [H, T, T]: to, from; zero from later positions; not a number where the layer has no attention."""
    values: Tensor
    """v [H, T, D], value bias included, shared key/value heads repeated; D is zero where there is no attention."""
    attention: Tensor
    """A_l [T, d], bias included; and what mixes positions beside attention, or instead of it."""
    middle: Tensor
    """r_l = x_l + A_l [T, d]"""
    coefficients: Tensor
    """m [T, N]"""
    ffn: Tensor
    """F_l [T, d], bias included."""
    attention_scale: Tensor | None = None
    """What a norm after attention divides its write by, [T]; the coefficients are divided already."""
    gates: Tensor | None = None
    """What multiplies the mixed heads, [H, T, D], or None."""
    ffn_reads_attention: bool = True
    """Whether the FFN reads r_l, and not x_l beside attention."""


@dataclass(frozen=True)
class States:
    """Everything one pass computed: `final` is x_L [T, d] before the final norm, `logits` [T, V]."""

    layers: tuple[LayerStates, ...]
    final: Tensor
    logits: Tensor


def forward(weights: Weights, token_ids: Sequence[int]) -> States:
    """Run `token_ids` through the model."""
    stream = weights.embedding[list(token_ids)]
    if weights.positions is not None:
        stream = stream + weights.positions[: len(token_ids)]
    layers = []
    for layer in weights.layers:
        layers.append(_run_layer(weights, layer, stream))
        stream = layers[-1].middle + layers[-1].ffn
    logits = weights.final_norm(stream) @ weights.unembedding.T + weights.unembedding_bias
    return States(tuple(layers), stream, logits)


def _run_layer(weights: Weights, layer: Layer, stream: Tensor) -> LayerStates:
    normed = layer.attention_norm(stream)
    pattern, values = _attend(weights, layer, normed)
    mixed = torch.einsum("hts,hsk->thk", pattern, values).flatten(1)
    attention = mixed @ layer.output + layer.output_bias
    middle = stream + attention
    coefficients = _coefficients(weights, layer, layer.ffn_norm(middle))
    ffn = coefficients @ layer.down + layer.down_bias
    return LayerStates(stream, pattern, values, attention, middle, coefficients, ffn)


def _attend(weights: Weights, layer: Layer, normed: Tensor) -> tuple[Tensor, Tensor]:
    queries = _split(normed @ layer.query.T + layer.query_bias, weights.heads)
    keys = _split(normed @ layer.key.T + layer.key_bias, weights.key_value_heads)
    values = _split(normed @ layer.value.T + layer.value_bias, weights.key_value_heads)
    if weights.rotary is not None:
        queries, keys = _rotate(queries, weights.rotary), _rotate(keys, weights.rotary)
    shared = [weights.key_value_head(head) for head in range(weights.heads)]
    logits = queries @ keys[shared].transpose(1, 2) / weights.head_size**0.5
    future = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    return torch.softmax(logits.masked_fill(future, -torch.inf), dim=-1), values[shared]


def _split(rows: Tensor, heads: int) -> Tensor:
    """[T, heads·D] -> [heads, T, D]"""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)


def _rotate(vectors: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary positions: dimension i turns with dimension i + D/2. [heads, T, D]"""
    angles = torch.arange(vectors.shape[1], dtype=torch.float64)[:, None] * frequencies
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat(
        (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), dim=-1
    )


def _coefficients(weights: Weights, layer: Layer, normed: Tensor) -> Tensor:
    up = normed @ layer.up.T + layer.up_bias
    if layer.gate is None:
        return weights.activation(up)
    return weights.activation(normed @ layer.gate.T + layer.gate_bias) * up
