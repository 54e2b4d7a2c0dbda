"""The frozen linear model by autograd in float64: a pass over again, in which only what depends linearly may change.

Written from the definition for Llama and GPT-2, over the oracle's weights and states. Shares nothing with the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.oracle import Oracle
from reference.weights import Layer, Norm


@dataclass(frozen=True)
class Linear:
    """The frozen pass: leaves, whose gradients are asked for, and what is made of them.

    `activations` are those of FFN neurons as functions of what is below, [T, N] of each layer; `written` are the leaves
    that the FFNs write in their place, when they are stopped.
    """

    embeddings: Tensor
    written: list[Tensor]
    biases: list[Tensor]
    """One number of each layer, 1: what multiplies all its biases."""
    activations: list[Tensor]
    final: Tensor


def linear_pass(oracle: Oracle, *, stopped: bool, gate: bool = False) -> Linear:
    """Run the frozen model; with `stopped`, FFNs write what they wrote, whatever they read."""
    states = oracle.states
    embeddings = states.layers[0].input.clone().requires_grad_()
    stream, written, biases, activations = embeddings, [], [], []
    for weights, kept in zip(oracle.weights.layers, states.layers, strict=True):
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        normed = _frozen(weights.attention_norm, stream, kept.input, one)
        group = oracle.weights.heads // oracle.weights.key_value_heads
        values = (normed @ weights.value.T + one * weights.value_bias).unflatten(
            1, (oracle.weights.key_value_heads, -1)
        )
        values = values.repeat_interleave(group, 1)
        mixed = torch.einsum("hts,shk->thk", kept.attention_weights, values).flatten(1)
        stream = stream + mixed @ weights.output + one * weights.output_bias
        found = _neurons(oracle, weights, kept.middle, _frozen(weights.ffn_norm, stream, kept.middle, one), one, gate)
        leaf = found.detach().clone().requires_grad_()
        stream = stream + (leaf if stopped else found) @ weights.down + one * weights.down_bias
        if not stopped:
            found.retain_grad()
        written.append(leaf if stopped else found)
        activations.append(found)
        biases.append(one)
    return Linear(embeddings, written, biases, activations, stream)


def output_of(oracle: Oracle, linear: Linear, position: int, target: int, contrast: int | None = None) -> Tensor:
    """<w, x_L[position]>, by the other tokens' probabilities of the pass."""
    weights = oracle.weights
    final = oracle.states.final[position]
    scale = weights.final_norm.scale(final)
    folded = weights.final_norm.fold(linear.final[position]) / scale
    logits = oracle.states.logits[position].clone()
    if contrast is not None:
        return folded @ (weights.unembedding[target] - weights.unembedding[contrast])
    logits[target] = -torch.inf
    others = torch.softmax(logits, 0)
    return folded @ (weights.unembedding[target] - others @ weights.unembedding)


def given(linear: Linear, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What everything gives a target, leaves times gradients: embeddings [T], neurons [L, T, N] and biases [L]."""
    leaves = [linear.embeddings, *linear.written, *linear.biases]
    found = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
    scaled = [leaf.detach() * (0 if each is None else each) for leaf, each in zip(leaves, found, strict=True)]
    count = len(linear.written)
    return scaled[0].sum(-1), torch.stack(scaled[1 : 1 + count]), torch.stack(scaled[1 + count :])


def _frozen(norm: Norm, stream: Tensor, clean: Tensor, one: Tensor) -> Tensor:
    return norm.fold(stream) / norm.scale(clean) + one * norm.bias


def _neurons(oracle: Oracle, weights: Layer, clean: Tensor, normed: Tensor, one: Tensor, gate: bool) -> Tensor:
    """Activations [T, N]: a frozen factor times what the subkey reads."""
    before = weights.ffn_norm(clean)
    up = before @ weights.up.T + weights.up_bias
    act = oracle.weights.activation
    if weights.gate is None or weights.gate_bias is None:
        return act(up) / up * (normed @ weights.up.T + one * weights.up_bias)
    gates = before @ weights.gate.T + weights.gate_bias
    if gate:
        return up * act(gates) / gates * (normed @ weights.gate.T + one * weights.gate_bias)
    return act(gates) * (normed @ weights.up.T + one * weights.up_bias)
