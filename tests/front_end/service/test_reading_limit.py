"""Long requests that are read: a few at a time, and no caller keeps the others out."""

import asyncio
import itertools
import threading
from dataclasses import replace

import grpc
import pytest
from neuron_attribution.errors import ResourceExhaustedError
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.front_end.calls.tenants import current_tenant
from neuron_attribution_server.front_end.service import reading_limit
from neuron_attribution_server.front_end.service.reading_limit import READERS, ReadingLimit
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer
from service.fakes import FACTS, FakeEngine
from service.servers import PATIENCE, running_server

LONG = "ab " * 1000


class LongWinded(FakeEngine):
    """Takes long prompts."""

    facts = replace(FACTS, maximum_tokens=10_000)


def fill(room, places):
    held = [room.place() for _ in range(places)]
    for place in held:
        place.__enter__()
    return held


def test_a_full_room_refuses_by_name_until_a_place_is_free():
    room = ReadingLimit(0.5)
    held = fill(room, READERS)
    with pytest.raises(ResourceExhaustedError, match=f"{READERS} long requests are being read") as caught, room.place():
        pass
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
    held.pop().__exit__(None, None, None)
    with room.place():
        pass


def test_a_tenant_fills_its_share_only():
    room = ReadingLimit(0.25)
    token = current_tenant.set("alice")
    held = fill(room, READERS // 4)
    with pytest.raises(ResourceExhaustedError, match="of yours") as caught, room.place():
        pass
    assert caught.value.reason == "TENANT_QUEUE_FULL"
    current_tenant.reset(token)
    with room.place():
        assert len(held) == READERS // 4


def test_a_flood_of_long_texts_is_refused_and_short_ones_are_answered(monkeypatch):
    monkeypatch.setattr(reading_limit, "READERS", 3)
    released, encode = threading.Event(), ExactTokenizer.encode

    def held_where_long(self, text, *options):
        assert len(text) < len(LONG) or released.wait(PATIENCE)
        return encode(self, text, *options)

    monkeypatch.setattr(ExactTokenizer, "encode", held_where_long)

    async def run(address):
        async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
            stub = services.NeuronAttributionServiceStub(channel)
            long = [asyncio.ensure_future(_tokenized(stub, LONG)) for _ in range(20)]
            refused = [await first for first in itertools.islice(asyncio.as_completed(long), 17)]
            short = await _tokenized(stub, "The")
            released.set()
            return refused, short, await asyncio.gather(*long)

    with running_server(ThreadWorker(LongWinded())) as server:
        assert server.loaded.wait(PATIENCE)
        refused, short, long = asyncio.run(run(server.address))
        assert short.tokens
        assert {from_rpc_error(each, "the server").reason for each in refused} == {"QUEUE_FULL"}
        assert [bool(answer.tokens) for answer in long if not isinstance(answer, grpc.RpcError)] == [True] * 3
        assert server.stub.Tokenize(messages.TokenizeRequest(text=LONG), timeout=PATIENCE).tokens


async def _tokenized(stub, text):
    """The answer, or the error."""
    try:
        return await stub.Tokenize(messages.TokenizeRequest(text=text), timeout=PATIENCE)
    except grpc.RpcError as error:
        return error
