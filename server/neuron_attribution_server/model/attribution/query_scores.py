"""Query scores: what activates the value neurons (paper section 3.3).

A value neuron's key reads the residual stream, which is a sum of components; each component gets its share of the
neuron's score. The divisor is a signed sum that can be near zero, and magnifies the rounding of float32 states (about
1e-6) by the inverse of its share of the terms' absolute sum. Sources below `SMALLEST_SHARE`, which have less than two
digits left, are skipped and counted; the rest is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.subvalues import Subvalues

SMALLEST_SHARE = 1e-4
READ_AT_ONCE = 1 << 21
"""Numbers that sources read of a component at once, in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class ComponentScores:
    """Query scores of the components embedding, attention 0, FFN 0, attention 1, ...: [R, 2 L + 1]; skipped [R]."""

    scores: Tensor
    skipped: Tensor


def component_scores(
    components: Sequence[Tensor],
    at: tuple[Tensor, Tensor],
    keys: Tensor,
    visible: Tensor,
    scores: Tensor,
    rows: Tensor,
    count: int,
) -> ComponentScores:
    """Share each source's score among the components its key reads, and add up those of a row.

    Components [B, T, d]; the sequences and positions where keys [K, d] read them; source k, which belongs to
    row rows[k] of `count`, reads the first visible[k] components.
    """
    products = keys.new_empty(len(components), len(keys), dtype=torch.float64)
    for states, of_component in zip(checked(components), products, strict=True):
        _read(states, at, keys, of_component)
    products = products.T
    beyond = torch.arange(products.shape[1], device=products.device) >= visible[:, None]
    products = products.masked_fill(beyond, 0)
    shares, skipped = _per_divisor(scores, products.sum(1), products.abs().sum(1))
    sums = products.new_zeros(count, products.shape[1]).index_add_(0, rows, products * shares[:, None])
    return ComponentScores(sums.float(), rows.new_zeros(count).index_add_(0, rows, skipped.long()))


def _read(states: Tensor, at: tuple[Tensor, Tensor], keys: Tensor, products: Tensor) -> None:
    """Put what keys [K, d] read of one component into products [K].

    Into memory that is there: results kept beside large passing tensors would keep their room apart.
    """
    step = max(1, READ_AT_ONCE // keys.shape[1])
    for start in range(0, len(keys), step):
        some = slice(start, start + step)
        states_there = states[at[0][some], at[1][some]].double()
        torch.sum(states_there.mul_(keys[some]), -1, out=products[some])


def scaled_keys(keys: Tensor, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """key * score / <x, key> of each source, [K, d] float64, zero where skipped, and which were skipped, [K]."""
    products = inputs.double() * keys.double()
    shares, skipped = _per_divisor(scores, products.sum(-1), products.abs().sum(-1))
    return keys.double() * shares[:, None], skipped


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Where the sources of several rows read the residual stream.

    Source k [K] belongs to the reading `readings[k]`, and those of layer l are at `layers[l]`; reading p [P] is that of
    row `rows[p]` at place `places[p]`. Rows that explain tokens of one sequence share places.
    """

    layers: Mapping[int, slice]
    readings: Tensor
    rows: Tensor
    places: Tensor


def query_ffn_scores(
    subvalues: Sequence[Subvalues], coefficients: Callable[[int], Tensor], keys: Tensor, at: Readings, rows: int
) -> tuple[Tensor, Tensor]:
    """Query scores of every FFN neuron for every row over the sources in higher layers, [rows, L, N].

    Also by their sign which end of its projection each writes: sums of the sizes of what the readings give, under the
    coefficients' signs, [rows, L, N]. Subvalues and coefficients [Q, N] of each layer at the Q places; scaled keys
    [K, d]. Layers with no source above score zero, and so do the gaps of layers narrower than the widest.
    """
    widest = max(map(len, subvalues))
    found = torch.zeros(2, rows, len(subvalues), widest, device=keys.device)
    of_rows = (torch.arange(rows, device=keys.device)[:, None] == at.rows).float()
    read = keys.new_zeros(len(at.rows), keys.shape[1])
    for layer in checked(reversed(range(max(at.layers)))):
        if span := at.layers.get(layer + 1):
            read.index_add_(0, at.readings[span], keys[span])
        factors, products = coefficients(layer)[at.places], subvalues[layer].products(read.float())
        width = products.shape[1]
        found[0, :, layer, :width] = of_rows @ (products * factors)
        found[1, :, layer, :width] = of_rows @ products.abs_().mul_(factors)
    return found[0], found[1]


def _per_divisor(scores: Tensor, divisors: Tensor, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    skipped = divisors.abs() <= SMALLEST_SHARE * magnitudes
    return torch.where(skipped, 0, scores.double() / divisors.masked_fill(skipped, 1)), skipped
