"""Fixtures shared by the client's tests."""

import json

import pytest
from client.fake_service import FakeService, serving
from neuron_attribution.transport import channel


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


@pytest.fixture(autouse=True)
def quick_retries(request, monkeypatch):
    """The waits between attempts are for restarting servers; tests marked `patient` wait as long."""
    if "patient" not in request.keywords:
        policy = channel.RETRY_POLICY | {"maxBackoff": "0.2s"}
        method = channel.SERVICE_CONFIG["methodConfig"][0] | {"retryPolicy": policy}
        config = channel.SERVICE_CONFIG | {"methodConfig": [method]}
        options = dict(channel.CHANNEL_OPTIONS) | {"grpc.service_config": json.dumps(config)}
        monkeypatch.setattr(channel, "CHANNEL_OPTIONS", tuple(options.items()))
