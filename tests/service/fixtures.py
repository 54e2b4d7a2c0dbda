"""A served fake model, shared by the tests that leave it as they found it."""

import json

import pytest
from neuron_attribution.transport import channel
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import FakeEngine
from service.faulty_engines import Turnstile
from service.servers import running_server


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def server(engine):
    """A ready server with a fresh engine."""
    with running_server(ThreadWorker(engine)) as server, engine:
        assert server.loaded.wait(30)
        engine.batches.clear()
        yield server


@pytest.fixture
def hasty(monkeypatch):
    """Clients that try again at once what is refused for good: the waits between tries are another test's."""
    policy = channel.RETRY_POLICY | {"initialBackoff": "0.01s", "maxBackoff": "0.01s"}
    config = channel.SERVICE_CONFIG | {
        "methodConfig": [{"name": [{"service": channel.SERVICE}], "retryPolicy": policy}]
    }
    options = dict(channel.CHANNEL_OPTIONS) | {"grpc.service_config": json.dumps(config)}
    monkeypatch.setattr(channel, "CHANNEL_OPTIONS", tuple(options.items()))


@pytest.fixture(scope="module")
def shared_server():
    """A ready server for a whole module."""
    limits = {"maximum_neurons": 3, "maximum_explained_tokens": 4, "maximum_intervention_sets": 2}
    with running_server(ThreadWorker(FakeEngine()), **limits) as server:
        assert server.loaded.wait(30)
        yield server


@pytest.fixture
def turnstile(tmp_path, monkeypatch):
    """What lets batches into the engines of `make_turnstile_engine`."""
    monkeypatch.setenv("TURNSTILE", str(tmp_path))
    return Turnstile(tmp_path)
