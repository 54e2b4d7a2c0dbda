"""The vectors that a layer's neurons write to the residual stream, read in place from the model's own weights.

A neuron writes its row of an output projection. Where the model norms or scales what a block writes, every row passes
through that: with its scale frozen (and counted in the neurons' coefficients) a norm is linear, v -> weight * c(v).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checkpoint
from neuron_attribution_server.model.attribution.exact_products import in_float32, product
from neuron_attribution_server.model.attribution.host import Ids, is_host, numbers_at_once


@dataclass(frozen=True, slots=True, eq=False)
class FrozenWrite:
    """What lies between an output projection and the residual stream: `weight` [d] or [], after centring or not."""

    weight: Tensor
    centred: bool

    def apply(self, vectors: Tensor) -> Tensor:
        """What vectors [..., d] become."""
        return self.weight * _centre(vectors, self.centred)

    def after(self, weight: Tensor) -> FrozenWrite:
        """The same behind a multiplication by a weight [d]."""
        assert not self.centred
        return FrozenWrite(self.weight * weight, centred=False)

    def transpose(self, gradients: Tensor) -> Tensor:
        """<apply(v), g> = <v, transpose(g)>, for gradients [..., d]."""
        return _centre(self.weight * gradients, self.centred)


class Subvalues:
    """A layer's subvalues: n rows of d, in blocks that may be views of larger weights, in the model's own dtype.

    `blocks` reads them, each time they are needed: not every model has all its weights where scoring happens, and
    packed ones are unpacked as they are read, so that none is held while the next is read. What lies between them and
    the residual stream is the same for all, or given for each. Units [n] that are `missing` only fill up a layer: they
    are no neurons, have no row in the blocks, and zeros for one here.
    """

    def __init__(
        self,
        blocks: Callable[[], Sequence[Tensor]],
        write: FrozenWrite | Sequence[FrozenWrite | None] | None = None,
        missing: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """`lengths` are the blocks' numbers of rows, where they are known without reading any."""
        lengths = [len(block) for block in blocks()] if lengths is None else lengths
        self._blocks = blocks
        self._writes = [write] * len(lengths) if write is None or isinstance(write, FrozenWrite) else list(write)
        self._ends = list(accumulate(lengths))
        self.missing = missing
        self.count = self._ends[-1]
        """How many neurons there are."""

    def __len__(self) -> int:
        return self.count if self.missing is None else len(self.missing)

    def each(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What a function of some rows in float32, [n_i, d], gives for every row, [..., n]."""

        def of_piece(piece: Tensor, write: FrozenWrite | None) -> Tensor:
            return function(self._spread(_written(piece.float(), write).T).T)

        return join(self._of_pieces(of_piece), -1)

    def weighted(self, weights: Tensor) -> Tensor:
        """Sums of the rows, weighted [E, n]: [E, d]."""
        place = 0

        def of_rows(rows: Tensor) -> Tensor:
            nonlocal place
            place += len(rows)
            return (weights[:, place - len(rows) : place] @ rows)[..., None]

        return self.each(of_rows).sum(-1)

    def weighted_by_heads(self, weights: Tensor) -> Tensor:
        """Sums of each head's rows, which are in one block, weighted [E, H, n / H]: [E, H, d]."""
        (block,), (write,) = self._blocks(), self._writes
        if self.missing is not None:
            weights = weights.flatten(1)[:, ~self.missing.to(weights.device)].unflatten(1, (weights.shape[1], -1))
        size = weights.shape[2]
        heads = max(1, numbers_at_once(block.device) // (size * block.shape[1]))
        found = []
        for some, rows in zip(weights.split(heads, 1), in_float32(block.split(heads * size)), strict=True):
            checkpoint()
            found.append(torch.einsum("ehk,hkd->ehd", some, _written(rows, write).unflatten(0, (-1, size))))
        return join(found, 1)

    def rows(self, indices: Tensor) -> Tensor:
        """Some rows, in float32, [C, d]; none that is missing."""
        blocks = self._blocks()
        if self.missing is not None:
            indices = self._numbers.to(indices.device)[indices]
        if len(blocks) == 1:
            return _written(blocks[0][indices].float(), self._writes[0])
        numbers = torch.bucketize(indices, self._bounds(indices.device), right=True)
        places, found = [], []
        for number in numbers.unique().tolist() or [0]:
            places.append((numbers == number).nonzero().squeeze(1))
            some = blocks[number][indices[places[-1]] - self._starts[number]].float()
            found.append(_written(some, self._writes[number]))
        rows = join(found, 0)
        return rows[join(places, 0).argsort()]

    def products(self, vectors: Tensor) -> Tensor:
        """<vector, row> of every row, [E, n], for vectors [E, d]."""
        read = {write: vectors if write is None else write.transpose(vectors) for write in self._writes}
        return self._spread(join(self._of_pieces(lambda piece, write: product(read[write], piece)), -1))

    @property
    def is_written(self) -> bool:
        """Whether anything stands between the rows and the residual stream."""
        return any(write is not None for write in self._writes)

    def read_norms(self) -> Tensor:
        """Norms of the rows as `products` reads them, times the most that it lengthens a vector by, [n].

        A product is computed of the vector transposed, so that its rounding is that of these norms.
        """

        def of_piece(piece: Tensor, write: FrozenWrite | None) -> Tensor:
            norms: Tensor = piece.float().norm(dim=-1)
            return norms if write is None else norms * write.weight.abs().max()

        return self._spread(join(self._of_pieces(of_piece), 0))

    def _of_pieces(self, function: Callable[[Tensor, FrozenWrite | None], Tensor]) -> list[Tensor]:
        """What a function of some rows of a block, [n_i, d], and of what lies behind them gives, one after another."""
        blocks, found = self._blocks(), list[Tensor]()
        for number, write in enumerate(self._writes):
            found += self._of_block(blocks[number], write, function)
        return found

    def _of_block(
        self, block: Tensor, write: FrozenWrite | None, function: Callable[[Tensor, FrozenWrite | None], Tensor]
    ) -> list[Tensor]:
        """Of pieces in equal parts: float32 copies of them, of whatever number, take little.

        A device has units for half precision, and gets them as they are.
        """
        parts = 1 if self.missing is not None else -(-block.numel() // numbers_at_once(block.device))
        pieces = block.tensor_split(max(1, parts))
        found = []
        for piece in in_float32(pieces) if is_host(block.device) else pieces:
            checkpoint()
            found.append(function(piece, write))
        return found

    def _spread(self, own: Tensor) -> Tensor:
        """Numbers of the neurons, [..., count], with zeros where units are missing, [..., n]."""
        if self.missing is None:
            return own
        found = own.new_zeros(*own.shape[:-1], len(self))
        found[..., ~self.missing.to(own.device)] = own
        return found

    @cached_property
    def _numbers(self) -> Tensor:
        """The row of each unit that is not missing, [n]."""
        assert self.missing is not None
        return (~self.missing).long().cumsum(0) - 1

    def _bounds(self, device: torch.device) -> Tensor:
        return self._ends_tensor.to(device)

    @property
    def _starts(self) -> list[int]:
        return [0, *self._ends]

    @cached_property
    def _ends_tensor(self) -> Tensor:
        return torch.tensor(self._ends)


def gathered(layers: Sequence[Subvalues], numbers: Ids, units: Tensor) -> Tensor:
    """Row units[c] of layer numbers[c] for every c, [C, d]; the numbers ascend: one gather per layer that is needed."""
    if not len(numbers):
        return layers[0].rows(units)
    wanted, starts = np.unique(numbers, return_index=True)
    ends = [*starts[1:].tolist(), len(numbers)]
    found = [layers[number].rows(units[start:end]) for number, start, end in zip(wanted, starts, ends, strict=True)]
    return join(found, 0)


def stack_layers(layers: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors [..., n_l] of every layer, stacked; those of narrower layers are padded with zeros."""
    width = max(layer.shape[-1] for layer in layers)
    return torch.stack([_padded(layer, width) for layer in layers], dim)


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Parts after one another; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _padded(layer: Tensor, width: int) -> Tensor:
    missing = width - layer.shape[-1]
    return torch.nn.functional.pad(layer, (0, missing)) if missing else layer


def _written(rows: Tensor, write: FrozenWrite | None) -> Tensor:
    return rows if write is None else write.apply(rows)


def _centre(vectors: Tensor, centred: bool) -> Tensor:
    return vectors - vectors.mean(-1, keepdim=True) if centred else vectors
