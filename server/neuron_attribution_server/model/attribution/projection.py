"""Vectors projected into the vocabulary: bs(v) without the scale s, and its highest and lowest tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.unembedding import Unembedding

VECTORS_AT_ONCE = 512
RANGES_AT_ONCE = 1024
HALVES_AT_ONCE = 8192
"""Tokens of a block of bfloat16 logits."""
HALF_ERROR = 3.1 * 2**-8
"""Of a logit, over the product of the norms: both factors and itself are rounded to eight bits; the rest is small."""


@dataclass(frozen=True, slots=True, eq=False)
class Extremes:
    """The k highest and the k lowest tokens of C vectors: ids and values, [C, k] each, most extreme first."""

    top: Tensor
    top_scores: Tensor
    bottom: Tensor
    bottom_scores: Tensor


def extremes(unembedding: Unembedding, vectors: Tensor, k: int) -> Extremes:
    """Project vectors [C, d], a few at a time."""
    k = min(k, len(unembedding.weight))
    chunks = [_extremes(unembedding, unembedding.fold(chunk), k) for chunk in vectors.split(VECTORS_AT_ONCE)]
    return Extremes(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _extremes(unembedding: Unembedding, folded: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The extremes of each block of the vocabulary, and the extremes of those."""
    ids, highest, lowest = [], [], []
    for block in unembedding.blocks():
        logits = unembedding.product(folded, block)
        few = min(k, block.stop - block.start)
        top, bottom = logits.topk(few), logits.topk(few, largest=False)
        ids.append(torch.stack([top.indices, bottom.indices]) + block.start)
        highest.append(top.values)
        lowest.append(bottom.values)
    top, bottom = torch.cat(highest, 1).topk(k), torch.cat(lowest, 1).topk(k, largest=False)
    top_ids, bottom_ids = torch.cat(ids, 2)
    return top_ids.gather(1, top.indices), top.values, bottom_ids.gather(1, bottom.indices), bottom.values


def through_head(normed: Tensor, value_rows: Tensor, output_rows: Tensor) -> Tensor:
    """What a head writes when it reads vectors [C, d]: W_V rows [D, d], then W_O rows [D, d]."""
    return normed @ value_rows.T @ output_rows


def vocabulary_ranges(unembedding: Unembedding, vectors: Tensor, *, halves: bool = False) -> Tensor:
    """At least the largest minus the smallest logit of each vector [C, d], without the scale s, [C].

    With `halves` from bfloat16 products, and above the exact ranges by what those may be off.
    """
    chunks = unembedding.fold(vectors).split(RANGES_AT_ONCE)
    if halves:
        return torch.cat([_half_ranges(unembedding, chunk) for chunk in chunks])
    return torch.cat([_spread(unembedding.product(chunk, each) for each in unembedding.blocks()) for chunk in chunks])


def _half_ranges(unembedding: Unembedding, folded: Tensor) -> Tensor:
    """Both factors and each logit are rounded to eight bits; a logit is at most the product of the norms."""
    rounded = folded.bfloat16()
    size = len(unembedding.weight)
    starts = checked(range(0, size, HALVES_AT_ONCE))
    spread = _spread(rounded @ unembedding.weight[start : start + HALVES_AT_ONCE].bfloat16().T for start in starts)
    off: Tensor = folded.norm(dim=-1) * (2 * HALF_ERROR * unembedding.largest_norm)
    return spread + off


def _spread(logits: Iterable[Tensor]) -> Tensor:
    blocks = [each.aminmax(dim=-1) for each in logits]
    highest = torch.stack([block.max for block in blocks]).amax(0)
    lowest = torch.stack([block.min for block in blocks]).amin(0)
    return highest.float() - lowest.float()


def vocabulary_ranks(unembedding: Unembedding, vectors: Tensor, targets: Tensor) -> Tensor:
    """The rank of each target [E] in each vector's projection, [E, C]: 1 plus the tokens strictly above it."""
    chunks = unembedding.fold(vectors).split(RANGES_AT_ONCE)
    return torch.cat([_ranks(unembedding, chunk, targets) for chunk in chunks], 1)


def standings(unembedding: Unembedding, vectors: Tensor, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Where tokens of its own, T of them, stand in each vector's projection: values and ranks, [C, T] each."""
    starts = range(0, len(tokens), VECTORS_AT_ONCE)
    found = [
        _standings(unembedding, unembedding.fold(some), tokens[start : start + VECTORS_AT_ONCE])
        for start, some in zip(starts, vectors.split(VECTORS_AT_ONCE), strict=True)
    ]
    values, ranks = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, ranks


def _standings(unembedding: Unembedding, folded: Tensor, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    named = torch.tensor(tokens, device=folded.device)
    values = torch.empty(named.shape, dtype=folded.dtype, device=folded.device)
    size = unembedding.block_size
    for start in sorted({token // size * size for mine in tokens for token in mine}):
        own, inside = _own_logits(unembedding.product(folded, slice(start, start + size)), named - start)
        values = torch.where(inside, own, values)
    ranks = torch.ones_like(named)
    for block in unembedding.blocks():
        logits = unembedding.product(folded, block)
        own, inside = _own_logits(logits, named - block.start)
        above = torch.stack([count_above(logits, mine) for mine in values.unbind(1)], 1)
        ranks += above - (inside & (own > values)).long()  # no token is above itself, whatever the rounding
    return values, ranks


def count_above(values: Tensor, limits: Tensor) -> Tensor:
    """How many of values [C, n] are above each limit [C]; n is below 2^24, so that sums of ones are exact."""
    above = torch.gt(values, limits[:, None], out=torch.empty_like(values))  # numbers are summed faster than booleans
    return above.sum(-1).long()


def _own_logits(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [C, T] in some columns of a block, and which of them are in it; elsewhere they are others' logits."""
    last = logits.shape[1] - 1
    return logits.gather(1, columns.clamp(0, last)), (columns >= 0) & (columns <= last)


def _ranks(unembedding: Unembedding, folded: Tensor, targets: Tensor) -> Tensor:
    ranks = torch.ones(len(targets), len(folded), dtype=torch.long, device=folded.device)
    own = torch.stack([_own(unembedding, folded, target) for target in targets])
    for block in unembedding.blocks():
        logits = unembedding.product(folded, block)
        ranks += torch.stack([_above(logits, row, target, block) for row, target in zip(own, targets, strict=True)])
    return ranks


def _own(unembedding: Unembedding, folded: Tensor, target: Tensor) -> Tensor:
    """The target's logits [C], by the same product as every token's: a token with the same vector is not above it."""
    start = int(target) // unembedding.block_size * unembedding.block_size
    return unembedding.product(folded, slice(start, start + unembedding.block_size))[:, int(target) - start]


def _above(logits: Tensor, own: Tensor, target: Tensor, block: slice) -> Tensor:
    """How many tokens of a block are above the target, which is never above itself whatever the rounding."""
    inside = torch.arange(block.start, block.stop, device=logits.device) == target
    return count_above(logits.masked_fill(inside, -torch.inf), own)
