"""Products of float32 vectors with a model's matrices in their own type: as exact as float32's, and no float32 copy.

A number in half precision is exact as it is. A float32 vector is exactly the sum of three bfloat16 ones, of 8 bits each
of its 24, and to 2^-23 of its largest number the sum of two float16 ones. On a device, the product of each runs at the
speed of half precision with its sums in float32. A processor converts the matrix, of which it is given a block that
stays in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.host import is_host, numbers_at_once

MORE_ERROR = 4.0
"""How many times as far as float32's the products with half precision may be off: several sums are added, and the units
of a GPU may cut off where float32 rounds."""
_FLOAT16_SHIFT = 2.0**11
"""The second float16 term is kept this many times larger than it is: its numbers would be among the smallest."""


def error_factor(matrix: Tensor) -> float:
    """How many times as far as float32's the products with a matrix may be off."""
    return 1.0 if matrix.dtype == torch.float32 else MORE_ERROR


def product(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors [C, d] in float32 times the rows of a matrix [n, d], in float32: [C, n]."""
    if matrix.dtype == torch.float32 or is_host(matrix.device):
        return vectors @ matrix.float().T
    return _sum_of_terms(vectors, matrix.T)


def products_by_pieces(vectors: Tensor, matrix: Tensor) -> Tensor:
    """The same of vectors [..., d], of so many rows at a time that float32 copies of them take little: [..., n]."""
    if matrix.dtype == torch.float32:
        return vectors @ matrix.T
    pieces = matrix.tensor_split(max(1, -(-matrix.numel() // numbers_at_once(matrix.device))))
    return torch.cat([vectors @ piece.T for piece in in_float32(pieces)], -1)


def in_float32(pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """Some rows of a matrix each, the most first; one copy is in the place of the one before.

    Copies side by side would not fit where the first was: what is kept of each piece tears the heap.
    """
    if pieces[0].dtype == torch.float32:
        yield from pieces
        return
    held = torch.empty_like(pieces[0], dtype=torch.float32)
    for piece in pieces:
        yield held[: len(piece)].copy_(piece)


def add_product(sums: Tensor, vectors: Tensor, matrix: Tensor) -> Tensor:
    """The same, added to sums [C, n] in their place."""
    if matrix.dtype == torch.float32 or is_host(matrix.device):
        return sums.addmm_(vectors, matrix.float().T)
    return sums.add_(_sum_of_terms(vectors, matrix.T))


def weighted_rows(weights: Tensor, matrix: Tensor) -> Tensor:
    """Sums of the rows of a matrix [n, d], weighted [C, n] in float32: [C, d]."""
    if matrix.dtype == torch.float32 or is_host(matrix.device):
        return weights @ matrix.float()
    return _sum_of_terms(weights, matrix)


def _sum_of_terms(vectors: Tensor, matrix: Tensor) -> Tensor:
    products = (_in_float32(term, matrix).mul_(factor) for term, factor in _terms(vectors, matrix.dtype))
    total = next(products)
    for each in products:
        total.add_(each)
    return total


def _in_float32(term: Tensor, matrix: Tensor) -> Tensor:
    """[C, d] times [d, n], both in half precision, summed in float32."""
    if term.device.type == "cuda":
        return torch.mm(term, matrix, out_dtype=torch.float32)
    return term.float() @ matrix.float()


def _terms(vectors: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor | float]]:
    """Vectors in half precision, and what each is multiplied by, whose sum is the vectors [C, d]."""
    if dtype == torch.bfloat16:
        for _ in range(3):
            term = vectors.to(dtype)
            vectors = vectors - term.float()
            yield term, 1.0
        return
    exponents = torch.frexp(vectors.abs().amax(-1, keepdim=True)).exponent
    factors = torch.ldexp(torch.ones_like(vectors[..., :1]), exponents)  # powers of two, at least the largest number
    scaled = vectors / factors
    first = scaled.to(dtype)
    yield first, factors
    yield ((scaled - first.float()) * _FLOAT16_SHIFT).to(dtype), factors / _FLOAT16_SHIFT
