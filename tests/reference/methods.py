"""The eight static scores of the paper's Table 2, for vectors of either kind of value neuron."""

from __future__ import annotations

from typing import Protocol

import torch
from neuron_attribution.requests import ScoringMethod
from torch import Tensor

from reference.unembedding import FrozenUnembedding, project

CHUNK = 256
"""Vectors projected into the vocabulary at once: a large vocabulary costs 100 MB at this size."""
CACHED = 2**17
"""Logits computed at once: what is read and written several times stays in the processor's cache."""


class Prediction(Protocol):
    """What is explained."""

    unembedding: FrozenUnembedding
    target: int
    contrast: int | None


def score_vectors(
    explained: Prediction, base: Tensor, vectors: Tensor, coefficients: Tensor, method: ScoringMethod
) -> Tensor:
    """Score every coefficient of every vector. base [d], vectors [n, d], coefficients [n, P] -> [n, P]"""
    rows = [
        _score_chunk(explained, base, chunk, m, method)
        for chunk, m in zip(vectors.split(CHUNK), coefficients.split(CHUNK), strict=True)
    ]
    return torch.cat(rows)


def _score_chunk(
    explained: Prediction, base: Tensor, vectors: Tensor, coefficients: Tensor, method: ScoringMethod
) -> Tensor:
    sizes, norms = coefficients.abs(), vectors.norm(dim=1, keepdim=True).expand_as(coefficients)
    by_size = {
        ScoringMethod.NORM: norms,
        ScoringMethod.COEFFICIENT: sizes,
        ScoringMethod.COEFFICIENT_NORM: sizes * norms,
    }
    if method in by_size:
        return by_size[method]
    projection = project(explained.unembedding.weights, vectors)
    if method in (ScoringMethod.RECIPROCAL_RANK, ScoringMethod.COEFFICIENT_RECIPROCAL_RANK):
        reciprocal = (1 / target_ranks(projection, explained.target).double())[:, None].expand_as(coefficients)
        return reciprocal if method is ScoringMethod.RECIPROCAL_RANK else sizes * reciprocal
    if method is ScoringMethod.LOG_PROBABILITY:
        return _values(explained, torch.zeros_like(base), projection, coefficients)
    values = _values(explained, base, projection, coefficients)
    clean = _values(explained, base, torch.zeros_like(projection[:1]), coefficients[:1, :1])
    return values.exp() - clean.exp() if method is ScoringMethod.PROBABILITY_INCREASE else values - clean


def _values(explained: Prediction, base: Tensor, projection: Tensor, coefficients: Tensor) -> Tensor:
    """f(base + m v) from the vectors' unscaled projections, computed once for all their coefficients."""
    start = explained.unembedding.bs(base) + explained.unembedding.bias
    rows = max(1, CACHED // projection.shape[1])
    blocks = zip(projection.split(rows), coefficients.split(rows), strict=True)
    return torch.cat([_block_values(explained, start, *block) for block in blocks])


def _block_values(explained: Prediction, start: Tensor, projection: Tensor, coefficients: Tensor) -> Tensor:
    unembedding = explained.unembedding
    columns = []
    for m in coefficients.T:
        logits = torch.addcmul(start, projection, m[:, None], value=1 / unembedding.scale.item())
        logits = unembedding.weights.capped(logits)
        found = logits[:, explained.target]
        if explained.contrast is None:
            columns.append(found - torch.logsumexp(logits, dim=1))
        else:
            columns.append(found - logits[:, explained.contrast])
    return torch.stack(columns, dim=1)


def target_ranks(projection: Tensor, target: int) -> Tensor:
    """1 + the number of strictly larger entries. [n, V] -> [n]"""
    return 1 + (projection > projection[:, target : target + 1]).sum(1)
