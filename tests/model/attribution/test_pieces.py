"""Matrices read some rows at a time, float32 copies in the same place: what is found is that of all rows."""

from __future__ import annotations

import pytest
import torch
from neuron_attribution_server.model.attribution import exact_products, subvalues
from neuron_attribution_server.model.attribution.exact_products import products_by_pieces
from neuron_attribution_server.model.attribution.subvalues import FrozenWrite, Subvalues
from torch import Tensor

HEADS, SIZE, HIDDEN = 5, 6, 16
DTYPES = (torch.float32, torch.bfloat16)
WRITE = FrozenWrite(torch.linspace(0.5, 2, HIDDEN), centred=True)
AT_ONCE = (1 << 22, 2 * SIZE * HIDDEN + 1, 1)
"""Numbers of a piece: of all rows, of two heads (the last is of one), and as few as can be."""


@pytest.fixture(params=AT_ONCE, autouse=True)
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (exact_products, subvalues):
        monkeypatch.setattr(module, "numbers_at_once", lambda _: request.param)


def made(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(dtype) -> None:
    vectors, matrix = made(2, 3, HIDDEN), made(HEADS * SIZE, HIDDEN).to(dtype)
    assert_close(products_by_pieces(vectors, matrix), vectors.double() @ matrix.double().T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("write", [None, WRITE], ids=["plain", "normed"])
@pytest.mark.parametrize("missing", [0, 2])
def test_subvalues(dtype, write, missing) -> None:
    """Of heads that may be smaller than the common size: the places that they leave empty count for nothing."""
    stored = made(HIDDEN, HEADS * (SIZE - missing)).to(dtype).T
    empty = (torch.arange(SIZE) >= SIZE - missing).repeat(HEADS) if missing else None
    layer = Subvalues(lambda: [stored], write, empty)
    rows = stored.double() if write is None else WRITE.weight * (stored.double() - stored.double().mean(-1)[:, None])
    whole = torch.zeros(HEADS * SIZE, HIDDEN, dtype=torch.float64)
    whole[~empty if missing else slice(None)] = rows
    weights, vectors = made(2, HEADS, SIZE), made(2, HIDDEN)
    mixed = torch.einsum("ehk,hkd->ehd", weights.double(), whole.unflatten(0, (HEADS, SIZE)))
    assert_close(layer.weighted_by_heads(weights), mixed)
    assert_close(layer.weighted(weights.flatten(1)), mixed.sum(1))
    assert_close(layer.products(vectors), vectors.double() @ whole.T)
    assert_close(layer.each(lambda some: some.norm(dim=-1)), whole.norm(dim=-1))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
