"""Traces over the wire: what becomes of a request, what is refused, what is kept, and that calls are counted."""

import asyncio
from dataclasses import replace

import pytest
from neuron_attribution import AsyncClient, Client
from neuron_attribution.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from neuron_attribution.requests import Subkey
from neuron_attribution.traces import TraceNodeKind, TraceOptions
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.service.task_sizes import answer_bytes
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.tasks import ExplainedToken, TraceTask
from service.browsing import ask, served
from service.fakes import FACTS, PROMPT, SIZES, TOKENIZER, FakeEngine
from service.scraping import Scrape
from service.servers import PATIENCE, failure, measured, running_server

PARIS, ROME = (TOKENIZER.token_named(text, "text") for text in (" Paris", " Rome"))
IDS = TOKENIZER.ids(PROMPT)


def trace(text=PROMPT, **fields):
    return messages.TraceRequest(prompt=messages.Prompt(text=text), **fields)


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


def test_a_request_and_its_answer(client, engine):
    options = {"nodes": 7, "edge_share": 0.5, "subkey": "gate", "heads": True, "screened": 9, "projection_top_k": 0}
    answer = client.trace(PROMPT, target=" Paris", contrast=" Rome", leave_out_always_on=True, **options)
    [[task]] = engine.batches
    assert (task.token_ids, task.contrast) == (IDS, ROME)
    assert task.explained == (ExplainedToken(len(IDS) - 1, PARIS),)
    assert task.options == TraceOptions(**{**options, "subkey": Subkey.GATE, "leave_out_always_on": True})
    assert [token.id for token in answer.tokens] == list(IDS)
    assert (answer.model.name, answer.origins) == ("fake", ())
    assert [node.kind for node in answer.graph.nodes] == [
        *(TraceNodeKind.OUTPUT, TraceNodeKind.FFN_NEURON, TraceNodeKind.TOKEN, TraceNodeKind.BIAS),
    ]
    assert [each.token.text for each in (*answer.graph.targets, *answer.graph.contrasts)] == [" Paris", " Rome"]
    timings = answer.timings
    assert (timings.forward, timings.scoring, timings.batch_requests, timings.cached) == (0.25, 0.5, 1, False)
    assert timings.tokenization > 0


def test_the_asynchronous_client_asks_the_same(server, engine):
    async def asking():
        async with AsyncClient(server.address) as client:
            return await client.trace(PROMPT, target=" Paris")

    answer = asyncio.run(asking())
    with Client(server.address) as client:
        assert client.trace(PROMPT, target=" Paris").graph.nodes == answer.graph.nodes
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("explained", "tokens", "task"),
    [
        ({}, 0, (ExplainedToken(5),)),
        ({"target": PARIS}, 0, (ExplainedToken(5, PARIS),)),
        ({"completion": " Paris Rome"}, 2, (ExplainedToken(5, PARIS), ExplainedToken(6, ROME))),
        ({"span": (4, 6)}, 0, (ExplainedToken(3, IDS[4]), ExplainedToken(4, IDS[5]))),
    ],
    ids=["the model's own", "target", "completion", "span"],
)
def test_what_is_explained(client, engine, explained, tokens, task):
    answer = client.trace(PROMPT, **explained)
    [[asked]] = engine.batches
    assert asked.explained == task
    assert len(answer.tokens) == len(IDS) + tokens
    assert answer.graph.positions == tuple(each.position for each in task)


def test_the_number_that_is_measured_follows_the_nodes_up_to_the_limit(engine):
    with running_server(ThreadWorker(engine), maximum_trace_screened=30) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.batches.clear()
        with Client(server.address) as client:
            limits = client.get_model().limits
            for options in ({"nodes": 5}, {"nodes": 10}, {"nodes": 10, "measure": False}, {"nodes": 40}):
                client.trace(PROMPT, **options)
    assert (limits.trace_nodes, limits.trace_screened) == (500, 30)
    assert [task.options.screened for [task] in engine.batches] == [20, 30, None, 40]
    assert [task.screened for [task] in engine.batches] == [20, 30, 10, 40]


INVALID = {
    "prompt.source": (messages.TraceRequest(), "set text, token_ids or conversation"),
    "prompt.text": (trace(""), "give at least one token"),
    "prompt": (trace("x" * 70), "over the limit 64"),
    "target.text": (trace(target=messages.TokenChoice(text=" Parisian")), "is 2 tokens"),
    "target.id": (trace(target=messages.TokenChoice(id=512)), "tokens 0 to 511"),
    "completion.source": (trace(completion=messages.Completion()), "set either text or token_ids"),
    "completion": (trace(completion=messages.Completion(text=" is" * 5)), "give at most 4"),
    "span.start": (trace(span=messages.Span(start=0, end=2)), "give at least 1"),
    "span.end": (trace(span=messages.Span(start=5, end=7)), "give at most 6"),
    "contrast.text": (trace(contrast=messages.TokenChoice(text="xyz")), "tokens"),
    "contrast": (
        trace(target=messages.TokenChoice(text=" Paris"), contrast=messages.TokenChoice(text=" Paris")),
        "name another token",
    ),
    "nodes": (trace(nodes=501), "give at most 500"),
    "edge_share": (trace(edge_share=1.01), "give one above 0, and at most 1"),
    "subkey": (trace(subkey=messages.SUBKEY_CHOICE_SUBVALUE), "give up or gate"),
    "screened": (trace(screened=4097), "give at most 4096"),
    "projection_top_k": (trace(projection_top_k=1001), "give at most 1000"),
}
FURTHER = [
    ("nodes", trace(nodes=0), "give at least 1"),
    ("edge_share", trace(edge_share=0), "give one above 0"),
    ("edge_share", trace(edge_share=float("nan")), "give one above 0"),
    ("subkey", trace(subkey=99), "SUBKEY_CHOICE_UP"),
    ("screened", trace(nodes=10, screened=9), "raise it, lower nodes or leave it out"),
    ("screened", trace(nodes=10, screened=20, measure=False), "leave one of them out"),
]


@pytest.mark.parametrize(
    ("field", "request_", "remedy"),
    [*((field, *each) for field, each in INVALID.items()), *FURTHER],
    ids=[*INVALID, *(f"{field} again" for field, *_ in FURTHER)],
)
def test_what_is_refused_is_named_with_a_remedy(shared_server, field, request_, remedy):
    error, _ = failure(lambda: shared_server.stub.Trace(request_, timeout=PATIENCE))
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.violations] == [field]
    assert remedy in error.message
    assert shared_server.stub.Trace(trace(), timeout=PATIENCE).nodes, "the next request is served"


def test_every_field_of_a_request_can_be_refused_by_name():
    """Those that cannot be wrong are switches, and the model's name."""
    fields = {field.name for field in messages.TraceRequest.DESCRIPTOR.fields}
    assert fields - {name.split(".")[0] for name in INVALID} == {"model", "measure", "heads", "leave_out_always_on"}


def test_another_model_is_not_served(client):
    with pytest.raises(NotFoundError, match="'other' is not served here"):
        client.trace(PROMPT, model="other")


def test_a_model_that_cannot_be_traced_says_why_and_is_not_asked():
    class Recurrent(FakeEngine):
        facts = replace(FACTS, untraceable="layer 0 mixes positions by recurrence")

    with Recurrent() as engine, running_server(ThreadWorker(engine)) as server:
        assert server.loaded.wait(PATIENCE)
        engine.batches.clear()
        with Client(server.address) as client:
            assert client.get_model().untraceable == "layer 0 mixes positions by recurrence"
            with pytest.raises(FailedPreconditionError, match="cannot be traced: layer 0 mixes") as caught:
                client.trace(PROMPT)
    assert caught.value.reason == "NOT_TRACEABLE"
    assert engine.batches == []


def test_the_client_refuses_what_it_cannot_send(client):
    for arguments, field in (
        ({"target": "a", "completion": "b"}, "explain"),
        ({"nodes": -1}, "nodes"),
        ({"edge_share": "much"}, "edge_share"),
        ({"subkey": "sideways"}, "subkey"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            client.trace(PROMPT, **arguments)
        assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(TypeError, match="did you mean 'nodes'"):
        client.trace(PROMPT, node=3)


def test_the_same_trace_is_answered_from_the_cache(client, engine):
    first, again = client.trace(PROMPT, target=" Paris"), client.trace(IDS, target=PARIS, nodes=100, screened=400)
    assert (first.timings.cached, again.timings.cached) == (False, True)
    assert again.graph.nodes == first.graph.nodes
    assert len(engine.batches) == 1
    others = [{"nodes": 5}, {"edge_share": 0.7}, {"subkey": "gate"}, {"measure": False}, {"heads": True}]
    others += [{"screened": 200}, {"projection_top_k": 3}, {"leave_out_always_on": True}, {"contrast": " Rome"}]
    for other in others:
        assert not client.trace(PROMPT, target=" Paris", **other).timings.cached, other
    assert not client.attribute(PROMPT, target=" Paris").timings.cached


def test_an_answer_is_no_longer_than_was_asked_room_for():
    task = TraceTask(token_ids=IDS, explained=(ExplainedToken(5, PARIS),), options=TraceOptions(nodes=1))
    with FakeEngine() as engine, running_server(ThreadWorker(engine)) as server:
        assert server.loaded.wait(PATIENCE)
        answer = server.stub.Trace(trace(nodes=1), timeout=PATIENCE)
    assert answer.ByteSize() <= answer_bytes(task, SIZES)


def test_an_answer_over_the_limit_is_refused_by_name(engine):
    with running_server(ThreadWorker(engine), maximum_message_bytes=1024) as server, engine:
        assert server.loaded.wait(PATIENCE)
        with Client(server.address) as client:
            assert client.trace("The").tokens
            with pytest.raises(ResourceExhaustedError, match=r"ask for fewer .* nodes") as caught:
                client.trace(" France" * 60)
    assert caught.value.reason == "RESPONSE_TOO_LARGE"


def test_calls_are_counted_by_their_name():
    with measured() as server:
        server.stub.Trace(trace(), timeout=PATIENCE)
        scrape = Scrape(server.metrics_address)
    handled = [value for (name, *labels), value in scrape.series.items() if "handled" in name and _is_ours(labels)]
    assert handled == [1]


def _is_ours(labels):
    return {("grpc_method", "Trace"), ("grpc_code", "OK")} <= set(labels)


def test_over_http_it_is_the_same_as_protobuf_json():
    with served() as server:
        status, _, answer = ask(server.web_address, "trace", {"prompt": {"text": PROMPT}, "edge_share": 0.5})
        refused, _, error = ask(server.web_address, "trace", {"prompt": {"text": PROMPT}, "edge_share": 2})
    assert (status, answer["nodes"][1]["kind"]) == (200, "TRACE_NODE_KIND_FFN_NEURON")
    assert answer["nodes"][1]["neuron"] == {"layer": 1, "index": 3}
    assert (refused, error["details"][-1]["fieldViolations"][0]["field"]) == (400, "edge_share")
