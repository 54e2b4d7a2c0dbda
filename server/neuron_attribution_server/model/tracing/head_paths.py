"""Which head carries most of an edge from an earlier position: of the paths that go through exactly one head.

What the source writes, read as values by a head of a layer above it, mixed into the target's position, and read there
by the target: the residual stream carries it before and after, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.tracing.frozen.model import FrozenModel
from neuron_attribution_server.model.tracing.frozen.sweeps import Place, part_of

PAIRS_AT_ONCE = 1 << 22
"""Numbers of heads' dimensions of pairs, held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """What writes to the residual stream, or reads it: vectors [n, d] at positions [n]; `layers` [n].

    Of writers the lowest layer whose attention may read what they write, of readers the highest that may write to it.
    """

    vectors: Tensor
    positions: Tensor
    layers: Tensor

    def and_also(self, other: Ends) -> Ends:
        """Both, one behind the other."""
        names = Ends.__dataclass_fields__
        return Ends(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True, slots=True, eq=False)
class StrongestHeads:
    """Of each of some edges the head and its layer, and what it carries, zero where nothing goes through any: [n]."""

    layers: Tensor
    heads: Tensor
    contributions: Tensor


def neuron_writers(frozen: FrozenModel, places: Sequence[Place]) -> Ends:
    """What FFN neurons write."""
    rows = []
    for place in places:
        part = part_of(frozen, place)
        position = int(part.places(torch.tensor(place.position, device=part.activations.device)))
        row = part.rows()[place.unit - part.first]
        written = row if part.write is None else part.write.apply(row)
        rows.append(written * part.activations[position, place.unit - part.first])
    return _ends(frozen, rows, places, 1)


def token_writers(frozen: FrozenModel, count: int) -> Ends:
    """The embeddings of the first tokens."""
    positions = torch.arange(count, device=frozen.embeddings.device)
    return Ends(frozen.embeddings[:count], positions, torch.zeros_like(positions))


def neuron_readers(frozen: FrozenModel, places: Sequence[Place]) -> Ends:
    """What the subkeys of FFN neurons read, as gradients of the residual stream."""
    rows = []
    for place in places:
        part = part_of(frozen, place)
        position = torch.tensor([place.position], device=part.activations.device)
        factor = part.factors[part.places(position), place.unit - part.first]
        rows.append(part.read.transpose(part.keys()[place.unit - part.first, None] * factor[:, None], position)[0])
    lower = [-int(frozen.layers[place.layer].parallel) for place in places]
    return _ends(frozen, rows, places, torch.tensor(lower, device=frozen.embeddings.device))


def output_readers(frozen: FrozenModel, output: Tensor, positions: Sequence[int]) -> Ends:
    """What the output, of gradients [T, d], reads at its positions."""
    at = torch.tensor(positions, device=output.device)
    return Ends(output[at], at, torch.full_like(at, len(frozen.layers) - 1))


def strongest_heads(
    frozen: FrozenModel, writers: Ends, readers: Ends, pairs: tuple[Tensor, Tensor, Tensor], edges: int
) -> StrongestHeads:
    """Of so many edges, by pairs of a writer, a reader, and the edge that they are part of, [n] each."""
    device = frozen.embeddings.device
    best = torch.zeros(edges, device=device)
    heads, layers = torch.zeros_like(best, dtype=torch.long), torch.zeros_like(best, dtype=torch.long)
    source, target, edge = pairs
    for number in checked(range(len(frozen.layers))):
        attention = frozen.layers[number].attention
        reads = attention.head_gradients(readers.vectors, readers.positions)
        values = frozen.values[attention.values].linear(writers.vectors, writers.positions)
        values = values.unflatten(-1, (attention.sizes.key_value_heads, -1))
        group = attention.sizes.heads // attention.sizes.key_value_heads
        carried = torch.zeros(edges, attention.sizes.heads, device=device)
        for some in torch.arange(len(source), device=device).split(max(1, PAIRS_AT_ONCE // reads[0].numel())):
            of, to = source[some], target[some]
            products = (reads[to] * values[of].repeat_interleave(group, 1)).sum(-1)
            products = products * attention.weights[:, readers.positions[to], writers.positions[of]].T
            open_ = (writers.layers[of] <= attention.values) & (readers.layers[to] >= number)
            open_ &= writers.positions[of] != readers.positions[to]
            carried.index_add_(0, edge[some], torch.where(open_[:, None], products, 0))
        strongest = carried.abs().argmax(1)
        found = carried.gather(1, strongest[:, None])[:, 0]
        larger = found.abs() > best.abs()
        best, heads = torch.where(larger, found, best), torch.where(larger, strongest, heads)
        layers = torch.where(larger, number, layers)
    return StrongestHeads(layers, heads, best)


def _ends(frozen: FrozenModel, rows: Sequence[Tensor], places: Sequence[Place], lower: Tensor | int) -> Ends:
    device, size = frozen.embeddings.device, frozen.embeddings.shape[1]
    layers = torch.tensor([place.layer for place in places], dtype=torch.long, device=device)
    positions = torch.tensor([place.position for place in places], dtype=torch.long, device=device)
    return Ends(torch.stack(list(rows)) if rows else frozen.embeddings.new_zeros(0, size), positions, layers + lower)
