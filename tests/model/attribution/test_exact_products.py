"""Products with half-precision matrices are as exact as float32's, within what the rounding slack allows for them."""

from __future__ import annotations

import pytest
import torch
from neuron_attribution_server.model.attribution import host
from neuron_attribution_server.model.attribution.exact_products import (
    MORE_ERROR,
    add_product,
    error_factor,
    product,
    weighted_rows,
)
from neuron_attribution_server.model.attribution.unembedding import dot_product_error
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
VECTORS, ROWS, LENGTH = 40, 70, 256


@pytest.fixture(params=["host", "device"])
def _place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the matrix is converted, and where the vectors are divided into terms."""
    if request.param == "device":
        monkeypatch.setattr(host, "HOST", "none")


def made(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors of very different sizes, nothing among them, and a matrix."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(VECTORS, LENGTH, generator=generator) * torch.logspace(-6, 4, VECTORS)[:, None]
    vectors[3] = 0
    vectors[4, 1:] *= 1e-6
    return vectors, torch.randn(ROWS, LENGTH, generator=generator).to(dtype)


@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_products_are_those_of_float32(dtype: torch.dtype) -> None:
    vectors, matrix = made(dtype)
    allowed = error_factor(matrix) * dot_product_error(LENGTH)
    within = vectors.norm(dim=-1)[:, None] * matrix.float().norm(dim=-1) * allowed
    exact = vectors.double() @ matrix.double().T
    assert ((product(vectors, matrix) - exact).abs() <= within).all()
    sums = torch.ones(VECTORS, ROWS)
    added = add_product(sums, vectors, matrix)
    assert added.data_ptr() == sums.data_ptr()
    assert ((added - 1 - exact).abs() <= within + 1e-6 * exact.abs() + 1e-6).all()


@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weighted_rows_are_those_of_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(VECTORS, ROWS, generator=generator).mul(3).softmax(-1)
    matrix = torch.randn(ROWS, LENGTH, generator=generator).to(dtype)
    exact = weights.double() @ matrix.double()
    within = MORE_ERROR * dot_product_error(ROWS) * weights.norm(dim=-1)[:, None] * matrix.float().norm(dim=0)
    assert ((weighted_rows(weights, matrix) - exact).abs() <= within).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_vectors_in_half_precision_would_not_do(dtype: torch.dtype) -> None:
    """The allowance is small enough to tell."""
    vectors, matrix = made(dtype)
    within = vectors.norm(dim=-1)[:, None] * matrix.float().norm(dim=-1) * MORE_ERROR * dot_product_error(LENGTH)
    rounded = vectors.to(dtype).double() @ matrix.double().T
    assert ((rounded - vectors.double() @ matrix.double().T).abs() > within).any()
