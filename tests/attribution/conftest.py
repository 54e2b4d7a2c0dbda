"""The models that the engine and the oracle are compared on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from reference.compared import Compared

pytest.register_assert_rewrite("reference")

THREADS = 2


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(params=["llama", "llama-with-biases", "gpt2"], scope="session")
def tiny(request: pytest.FixtureRequest) -> Compared:
    """Each tiny model."""
    from reference.compared import compare_tiny

    return compare_tiny(request.param)
