"""Served models, a fake one and the demo model, shared by the tests that leave them as they found them."""

import json

import pytest
from neuron_attribution.transport import channel
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.model.loading.sources.demo import DemoUnavailableError, demo_folder
from service.demo_server import ServedDemo, serving
from service.fakes import FakeEngine
from service.faulty_engines import Turnstile
from service.scraping import free_address
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


@pytest.fixture(scope="session")
def demo_server():
    """A server process with the demo model and the web page; skipped where the model cannot be fetched.

    It has one thread: other tests run beside it, and who else has one computes the same bits.
    """
    try:
        demo_folder()
    except DemoUnavailableError as error:
        pytest.skip(f"no demo model: {error}")
    web = free_address()
    with serving("--web", web, "--threads", "1") as (address, _):
        yield ServedDemo(address, f"http://{web}/")


@pytest.fixture
def turnstile(tmp_path, monkeypatch):
    """What lets batches into the engines of `make_turnstile_engine`."""
    monkeypatch.setenv("TURNSTILE", str(tmp_path))
    return Turnstile(tmp_path)
