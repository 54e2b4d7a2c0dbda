"""Fixtures shared by the client's tests."""

import pytest
from unit.fake_service import FakeService, serving


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service):
    with serving(service) as address:
        yield address


@pytest.fixture(autouse=True)
def no_options_from_the_environment(monkeypatch):
    """Options read the environment: a developer's own settings must not change a test."""
    import os

    for name in list(os.environ):
        if name.startswith("NEURON_ATTRIBUTION_"):
            monkeypatch.delenv(name)
