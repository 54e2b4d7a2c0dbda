"""A model in memory, served on a real port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuron_attribution import Client
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.servers import running_server

from reference.compared import Compared

PATIENCE = 60


@contextmanager
def served(compared: Compared, **settings: object) -> Iterator[Client]:
    """A client of a server with this model, which needs a tokenizer."""
    with running_server(ThreadWorker(compared.engine), **settings) as server:
        assert server.loaded.wait(PATIENCE)
        with Client(server.address) as client:
            yield client
