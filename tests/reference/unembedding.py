"""The frozen unembedding: the final norm's scale is taken once and vectors are read into the vocabulary linearly."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.weights import Weights


def project(weights: Weights, vectors: Tensor) -> Tensor:
    """W_U (γ ⊙ c(v)), without the scale. [..., d] -> [..., V]"""
    return weights.final_norm.fold(vectors) @ weights.unembedding.T


class FrozenUnembedding:
    """bs(v) = W_U (γ ⊙ c(v)) / s, s from the clean run's last residual, [d].

    With `include_bias`, W_U β and the unembedding's own bias are added before the softmax.
    """

    def __init__(self, weights: Weights, last_residual: Tensor, include_bias: bool = False) -> None:
        self.weights = weights
        self.scale = weights.final_norm.scale(last_residual)
        bias = weights.unembedding @ weights.final_norm.bias + weights.unembedding_bias
        self.bias = bias if include_bias else torch.zeros_like(bias)

    def bs(self, vectors: Tensor) -> Tensor:
        """[..., d] -> [..., V]"""
        return project(self.weights, vectors) / self.scale

    def log_probabilities(self, bs_values: Tensor) -> Tensor:
        """[..., V] -> [..., V]"""
        return torch.log_softmax(self.weights.capped(bs_values + self.bias), dim=-1)
