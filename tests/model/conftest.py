"""The models that the engine and the oracle are compared on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from examples import few

if TYPE_CHECKING:
    from reference.compared import Compared


@pytest.fixture(params=few(["llama", "llama-with-biases", "gpt2"]), scope="session")
def tiny(request: pytest.FixtureRequest) -> Compared:
    """Each tiny model."""
    from reference.compared import compare_tiny

    return compare_tiny(request.param)
