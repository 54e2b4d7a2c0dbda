"""Messages from JSON and to JSON: in turns, within limits, and no more of them held than there is room for."""

import asyncio
import gc
import json
import threading
import weakref
from functools import partial

import pytest
from neuron_attribution.errors import InvalidArgumentError, ResourceExhaustedError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS
from neuron_attribution_server.front_end.web import json_conversion as web_json
from neuron_attribution_server.front_end.web.held_bytes import HeldBytes
from neuron_attribution_server.front_end.web.json_conversion import most_values, parsed
from neuron_attribution_server.front_end.web.turns import AT_ONCE, QUICK, Conversions
from neuron_attribution_server.settings.config import ServerConfig
from service.browsing import ask, reasons, served
from service.servers import PATIENCE

LONG, MEDIUM, SHORT = QUICK + 1, QUICK, AT_ONCE
NEURON = {"attention": {"layer": 1, "head": 1, "index": 1}}


class Work:
    """Work that waits in its thread until it is released, and notes that it began."""

    def __init__(self):
        self.begun = []
        self.released = threading.Event()

    def __call__(self, name):
        self.begun.append(name)
        assert self.released.wait(PATIENCE)
        return name


async def until(true):
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


def converting(test):
    """Run a test with conversions, whose threads end with it."""

    async def run():
        conversions, work = Conversions(), Work()
        try:
            await test(conversions, work, lambda tenant, size, name: begin(conversions, work, tenant, size, name))
        finally:
            work.released.set()
            conversions.close()

    asyncio.run(run())


def test_what_could_not_be_converted_is_held_by_no_error():
    """Python would find such garbage only after many more, each as large as a request may be."""

    class Body:
        pass

    def fail(_):
        raise InvalidArgumentError("no message")

    async def test(conversions, *_):
        body = Body()
        held = weakref.ref(body)
        with pytest.raises(InvalidArgumentError):
            await asyncio.create_task(conversions.run("one", LONG, partial(fail, body)))
        del body
        await until(lambda: held() is None)

    gc.disable()
    try:
        converting(test)
    finally:
        gc.enable()


def begin(conversions, work, tenant, size, name):
    return asyncio.create_task(conversions.run(tenant, size, partial(work, name)))


def test_long_work_does_not_wait_for_quick_work_nor_the_other_way_round_and_short_work_for_nothing():
    async def test(conversions, work, begin):
        long, medium = begin("alice", LONG, "long"), begin("alice", MEDIUM, "medium")
        await until(lambda: set(work.begun) == {"long", "medium"})
        assert await conversions.run("alice", SHORT, lambda: "short") == "short"
        work.released.set()
        assert [await long, await medium] == ["long", "medium"]

    converting(test)


def test_tenants_take_turns():
    async def test(_, work, begin):
        tasks = [begin("alice", LONG, f"alice {number}") for number in range(3)]
        await until(lambda: work.begun)
        tasks += [begin("bob", LONG, "bob"), begin("carol", LONG, "carol")]
        await asyncio.sleep(0.05)
        assert work.begun == ["alice 0"], "one at a time"
        work.released.set()
        await asyncio.gather(*tasks)
        assert work.begun == ["alice 0", "bob", "carol", "alice 1", "alice 2"]

    converting(test)


def test_whoever_is_cancelled_is_not_begun_and_his_turn_lasts_while_his_thread_works():
    async def test(_, work, begin):
        running, waiting = begin("alice", LONG, "running"), begin("alice", LONG, "waiting")
        behind = begin("bob", LONG, "behind")
        await until(lambda: work.begun)
        for task in (running, waiting, behind):
            task.cancel()
        last = begin("alice", LONG, "last")
        await asyncio.wait([running, waiting, behind])
        await asyncio.sleep(0.05)
        assert work.begun == ["running"]
        work.released.set()
        assert await last == "last"
        assert work.begun == ["running", "last"]

    converting(test)


def largest_requests(config):
    """The JSON of requests that have as much of everything as the limits allow, and the types they are of."""
    neurons = [NEURON] * config.maximum_neurons
    intervention = {"neurons": neurons, "scale": 1.5, "explained_position_only": True}
    sets = [{"interventions": [intervention]}] * config.maximum_intervention_sets
    ids = {"token_ids": {"ids": [1] * config.maximum_tokens}}
    completion = {"token_ids": {"ids": [1] * config.maximum_explained_tokens}}
    yield messages.InterveneRequest, {"prompt": ids, "sets": sets}
    yield messages.ProjectNeuronRequest, {"neurons": neurons}
    yield (
        messages.AttributeRequest,
        {"prompt": ids, "completion": completion, "neurons": neurons, "interventions": [intervention]},
    )


@pytest.mark.parametrize("limits", [{}, {"maximum_neurons": 1, "maximum_intervention_sets": 1, "maximum_tokens": 8}])
def test_every_request_within_the_limits_is_read(limits):
    config = ServerConfig(model="fake", **limits)
    for kind, request in largest_requests(config):
        assert kind.FromString(parsed(json.dumps(request).encode(), kind, most_values(config))).ListFields()


@pytest.mark.parametrize("text", ["{[," * 10_000, '\\"{[,' * 10_000, "\\" * 9999, '"'])
def test_what_stands_in_a_text_is_no_value(text):
    request = {"text": text, "model": "{" * 100}
    read = messages.TokenizeRequest.FromString(parsed(json.dumps(request).encode(), messages.TokenizeRequest, 10))
    assert (read.text, read.model) == (text, request["model"])


def test_too_many_values_are_refused():
    body = b'{"neurons":[' + b",".join([b"{}"] * 1000) + b"]}"
    with pytest.raises(InvalidArgumentError, match="more than 999 values"):
        parsed(body, messages.ProjectNeuronRequest, 999)


def test_an_answer_that_is_too_large_for_json_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(web_json, "ANSWER_BYTES", 100)
    with served() as server:
        status, headers, answer = ask(server.web_address, "get_model", {})
        assert (status, reasons(answer)) == (429, ["RESPONSE_TOO_LARGE"])
        assert "Retry-After" not in headers
        assert headers["X-Request-Id"]
        assert "or ask by gRPC" in answer["message"]


def test_a_tenant_holds_its_share_of_the_bytes_or_one_message():
    account = HeldBytes("requests", "read", 100, 0.5)
    with account.message("alice") as large, account.message("bob") as other:
        large.grow_to(60)
        large.grow_to(70)
        with account.message("alice") as second, pytest.raises(ResourceExhaustedError, match="of yours") as caught:
            second.grow_to(1)
        assert (caught.value.reason, caught.value.retry_after) == ("TENANT_QUEUE_FULL", 1.0)
        other.grow_to(30)
        with pytest.raises(ResourceExhaustedError, match="take 100 bytes") as caught:
            other.grow_to(31)
        assert caught.value.reason == "QUEUE_FULL"
    with account.message("alice") as alone:
        alone.grow_to(200)


def test_anonymous_callers_share_it_all():
    account = HeldBytes("requests", "read", 100, 0.5)
    with account.message(ANONYMOUS) as one, account.message(ANONYMOUS) as other:
        one.grow_to(60)
        other.grow_to(40)
        with pytest.raises(ResourceExhaustedError, match="requests that are being read"):
            other.grow_to(41)
