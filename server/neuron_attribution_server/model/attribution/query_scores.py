"""Query scores: what activates the value neurons (paper section 3.3).

A value neuron's key reads the residual stream, which is a sum of components; each component gets its share of the
neuron's score. The divisor is a signed sum that can be near zero, and magnifies the rounding of float32 states (about
1e-6) by the inverse of its share of the terms' absolute sum. Sources below `SMALLEST_SHARE`, which have less than two
digits left, are skipped and counted; the rest is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.subvalues import Subvalues

SMALLEST_SHARE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class ComponentScores:
    """Query scores of the components embedding, attention 0, FFN 0, attention 1, ...: [2 L + 1], float64.

    And how many sources were skipped.
    """

    scores: Tensor
    skipped: int


def component_scores(components: Tensor, keys: Tensor, visible: Tensor, scores: Tensor) -> ComponentScores:
    """Share each source's score among the components its key reads.

    Components [K or 1, C, d] at each source's position; keys [K, d]; source k reads the first visible[k] components.
    """
    products = (components.double() @ keys.double()[:, :, None]).squeeze(-1)
    beyond = torch.arange(products.shape[1], device=products.device) >= visible[:, None]
    products = products.masked_fill(beyond, 0)
    shares, skipped = _per_divisor(scores, products.sum(1), products.abs().sum(1))
    return ComponentScores((products * shares[:, None]).sum(0), skipped)


def scaled_keys(keys: Tensor, inputs: Tensor, scores: Tensor) -> tuple[Tensor, int]:
    """key * score / <x, key> of each source, [K, d] float64, zero where skipped, and how many were skipped."""
    products = inputs.double() * keys.double()
    shares, skipped = _per_divisor(scores, products.sum(-1), products.abs().sum(-1))
    return keys.double() * shares[:, None], skipped


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Where the sources of several rows read the residual stream.

    Source k [K] is in layer `layers[k]` and belongs to the reading `readings[k]`; reading p [P] is that of row
    `rows[p]` at place `places[p]`. Rows that explain tokens of one sequence share places.
    """

    layers: Tensor
    readings: Tensor
    rows: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class QueryFfnScores:
    """Query scores of every FFN neuron for every row, and by their sign which end of its projection each writes.

    `scores` are the sums of what the readings give, `written` those of their sizes under the coefficients' signs.
    [rows, L, N] each.
    """

    scores: Tensor
    written: Tensor


def query_ffn_scores(
    subvalues: Sequence[Subvalues], coefficients: Iterable[Tensor], keys: Tensor, at: Readings, rows: int
) -> QueryFfnScores:
    """Query scores of every FFN neuron for every row over the sources in higher layers.

    Subvalues of each layer; coefficients [Q, N] of the layers below the highest source at the Q places; scaled keys
    [K, d]. Layers with no source above score zero, and so do the gaps of layers narrower than the widest.
    """
    scores, ends = torch.zeros(2, rows, len(subvalues), max(map(len, subvalues)), device=keys.device)
    for layer, mine in enumerate(checked(coefficients)):
        written = subvalues[layer]
        above = at.layers > layer
        read = torch.zeros(len(at.rows), keys.shape[1], dtype=keys.dtype, device=keys.device)
        read.index_add_(0, at.readings[above], keys[above])
        factors, products = mine[at.places], written.products(read.float())
        scores[:, layer, : len(written)].index_add_(0, at.rows, products * factors)
        ends[:, layer, : len(written)].index_add_(0, at.rows, products.abs_().mul_(factors))
    return QueryFfnScores(scores, ends)


def _per_divisor(scores: Tensor, divisors: Tensor, magnitudes: Tensor) -> tuple[Tensor, int]:
    skipped = divisors.abs() <= SMALLEST_SHARE * magnitudes
    return torch.where(skipped, 0, scores.double() / divisors.masked_fill(skipped, 1)), int(skipped.sum())
