"""A model in memory, served on a real port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuron_attribution import Client
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.model.engine.engine import Engine
from service.servers import running_server
from tokenizers import Tokenizer, models, pre_tokenizers

from reference.compared import Compared

PATIENCE = 60


def word_tokenizer(count: int) -> str:
    """A tokenizer of as many words as a model has tokens."""
    tokenizer = Tokenizer(models.WordLevel({f"w{id}": id for id in range(count)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


@contextmanager
def served(compared: Compared, **settings: object) -> Iterator[Client]:
    """A client of a server with this model, which needs a tokenizer."""
    with served_engine(compared.engine, **settings) as client:
        yield client


@contextmanager
def served_engine(engine: Engine, **settings: object) -> Iterator[Client]:
    """The same of an engine."""
    with running_server(ThreadWorker(engine), **settings) as server:
        assert server.loaded.wait(PATIENCE)
        with Client(server.address) as client:
            yield client
