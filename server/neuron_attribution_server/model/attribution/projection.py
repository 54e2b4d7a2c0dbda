"""Vectors projected into the vocabulary: bs(v) without the scale s, and its highest and lowest tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.unembedding import Unembedding

LOGITS_HELD = 1 << 23
"""Logits of vectors for the whole vocabulary that are held at once: those of one vector at least."""
GROUP = 64
"""Tokens of which only the most extreme is looked at first: the k most extreme are among the k groups with such."""
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


def vectors_held(unembedding: Unembedding) -> int:
    """Vectors that are projected together."""
    return max(1, LOGITS_HELD // len(unembedding.weight))


def extremes(unembedding: Unembedding, vectors: Tensor, k: int) -> Extremes:
    """Project vectors [C, d], a few at a time, into the same piece of memory.

    A piece for each part would be torn by what is kept of the part before, and the heap would grow with all of them.
    """
    parts = vectors.split(vectors_held(unembedding))
    held = vectors.new_empty(len(parts[0]), len(unembedding.weight), dtype=torch.float32)
    chunks = [_extremes(unembedding.logits(unembedding.fold(part), held[: len(part)]), k) for part in checked(parts)]
    return Extremes(*(torch.cat(columns) for columns in zip(*chunks, strict=True)))


def described(unembedding: Unembedding, vectors: Tensor, tokens: Tensor, k: int) -> tuple[Extremes, Tensor, Tensor]:
    """The extremes of a few vectors [C, d], and where tokens [C, T] stand in them: values and ranks, [C, T] each.

    A rank is 1 plus the tokens strictly above; none is above itself, for all are of the same product.
    """
    logits = unembedding.logits(unembedding.fold(vectors))
    values = logits.gather(1, tokens)
    ranks = torch.stack([count_above(logits, mine) for mine in values.unbind(1)], 1) + 1
    return Extremes(*_extremes(logits, k)), values, ranks


def _extremes(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_end(logits, k, largest=True), *_end(logits, k, largest=False)


def _end(values: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The places and values of the k largest or smallest of values [C, n], most extreme first."""
    size = values.shape[1]
    grouped = size // GROUP
    if k >= grouped:
        best = values.topk(min(k, size), largest=largest)
        return best.indices, best.values
    of_groups = values[:, : grouped * GROUP].unflatten(1, (grouped, GROUP))
    ends = of_groups.amax(-1) if largest else of_groups.amin(-1)
    groups = ends.topk(k, largest=largest).indices
    inside = torch.arange(GROUP, device=values.device)
    rest = torch.arange(grouped * GROUP, size, device=values.device).expand(len(values), -1)
    places = torch.cat([(groups[:, :, None] * GROUP + inside).flatten(1), rest], 1)
    best = values.gather(1, places).topk(k, largest=largest)
    return places.gather(1, best.indices), best.values


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


def count_above(values: Tensor, limits: Tensor) -> Tensor:
    """How many of values [C, n] are above each limit [C]; n is below 2^24, so that sums of ones are exact."""
    above = torch.gt(values, limits[:, None], out=torch.empty_like(values))  # numbers are summed faster than booleans
    return above.sum(-1).long()


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
