"""A served fake model, shared by the tests that leave it as they found it."""

import pytest
from neuron_attribution_server.thread_worker import ThreadWorker
from service.fakes import FakeEngine
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


@pytest.fixture(scope="module")
def shared_server():
    """A ready server for a whole module."""
    limits = {"maximum_neurons": 3, "maximum_explained_tokens": 4, "maximum_intervention_sets": 2}
    with running_server(ThreadWorker(FakeEngine()), **limits) as server:
        assert server.loaded.wait(30)
        yield server
