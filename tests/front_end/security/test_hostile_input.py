"""Input nobody sends by accident: every kind of text, bytes that are no message, sizes without measure, and the log."""

import json
import logging
import time
from contextlib import suppress

import grpc
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.conversing import HarmlessChattingEngine, chat
from service.fakes import PROMPT
from service.servers import PATIENCE, attribution, failure, running_server
from soak.mutations import SERVICE, VALID, call_with, mutated

TEXTS = {
    "NUL": "\0",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85",
    "right-to-left marks": "\u202eabc\u202c\u2067אב\u2069",
    "combining": "e" + "\u0301\u0323" * 20,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "noncharacters": "\uffff\ufdd0\U0010ffff",
    "zero width": "\u200b\u200d\ufeff",
    "line separators": "\u2028\u2029\r\n",
    "escape sequences": "\x1b[31m\x1b]0;x\x07",
    "a special token": "<bos>",
    "percent signs and quotes": "%s%n{0}\"'\\",
    "replacement character": "\ufffd",
}
FIELDS = {
    "prompt": attribution,
    "target": lambda text: attribution(target=messages.TokenChoice(text=text)),
    "completion": lambda text: attribution(completion=messages.Completion(text=text)),
    "contrast": lambda text: attribution(contrast=messages.TokenChoice(text=text)),
    "model": lambda text: attribution(model=text),
    "content": chat,
    "role": lambda text: chat("x", role=text),
}
INVALID_UTF8 = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
CLEAN = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}


@pytest.fixture(scope="module")
def harmless_server():
    with running_server(ThreadWorker(HarmlessChattingEngine()), maximum_explained_tokens=50) as server:
        assert server.loaded.wait(PATIENCE)
        yield server


def send(server, method, data):
    """The answers, after a check: an answer or a refusal by name, never a crash, a hang or a stack."""
    answers = call_with(server.channel, method, data, PATIENCE)
    try:
        received = answers()
    except grpc.RpcError as caught:
        status = caught
    else:
        if method == "AttributeStream":
            items = map(messages.AttributeStreamResponse.FromString, received)
            assert {CODES[item.error.code] for item in items if item.HasField("error")} <= CLEAN
        return received
    assert status.code().name in CLEAN
    assert from_rpc_error(status, "the server").reason != "UNKNOWN", "every refusal has a reason of its own"
    assert "Traceback" not in str(status.trailing_metadata())
    assert dict(status.trailing_metadata())["x-request-id"]
    return []


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_text_is_answered_or_refused_by_name(harmless_server, field, kind):
    send(harmless_server, "Attribute", FIELDS[field](TEXTS[kind]).SerializeToString())
    assert harmless_server.attribute().explanations


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_of_text_has_tokens_that_cover_its_bytes(harmless_server, kind):
    text = TEXTS[kind]
    request = messages.TokenizeRequest(text=text, add_special_tokens=False)
    tokens = harmless_server.stub.Tokenize(request, timeout=PATIENCE).tokens
    covered = {position for token in tokens for position in range(token.start, token.end)}
    assert covered == set(range(len(text.encode())))


@given(text=st.text(min_size=1, max_size=40), field=st.sampled_from(sorted(FIELDS)))
@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_answered_or_refused_by_name(harmless_server, text, field):
    send(harmless_server, "Attribute", FIELDS[field](text).SerializeToString())


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("wrong", INVALID_UTF8, ids=bytes.hex)
def test_bytes_that_are_not_utf8_are_refused(harmless_server, field, wrong):
    """A message library would not write them; lone surrogates are the third of them."""
    mark = "#" * len(wrong)
    data = FIELDS[field](mark).SerializeToString().replace(mark.encode(), wrong)
    call = harmless_server.channel.unary_unary(f"{SERVICE}/Attribute")
    error, status = failure(lambda: call(data, timeout=PATIENCE))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MALFORMED_MESSAGE"


@given(method=st.sampled_from(sorted(VALID)), random=st.randoms(use_true_random=False), data=st.data())
@settings(max_examples=examples(500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_requests_are_answered_or_refused_by_name(harmless_server, method, random, data):
    request = data.draw(st.sampled_from(VALID[method]))
    send(harmless_server, method, mutated(request, random))


@given(method=st.sampled_from(sorted(VALID)), data=st.binary(max_size=200))
@settings(max_examples=examples(500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_answered_or_refused_by_name(harmless_server, method, data):
    send(harmless_server, method, data)


def test_what_is_mutated_was_right(harmless_server):
    for method, requests in VALID.items():
        for request in requests:
            answers = send(harmless_server, method, request.SerializeToString())
            assert answers, f"the fake model answers {request}"


BOMBS = {
    "a million characters": attribution("x" * 1_000_000),
    "a million emoji": attribution("👩" * 1_000_000),
    "a million characters of one target": attribution(target=messages.TokenChoice(text="y" * 1_000_000)),
    "three million ids": messages.AttributeRequest(
        prompt=messages.Prompt(token_ids=messages.TokenIds(ids=[1] * 3_000_000))
    ),
    "a million neurons": attribution(neurons=[messages.Neuron(ffn=messages.FfnNeuron())] * 900_000),
    "three million parts": attribution(parts=[1] * 3_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_without_measure_are_refused_at_once(harmless_server, name):
    """Health answers meanwhile: nothing holds the event loop."""
    call = harmless_server.stub.Attribute.future(BOMBS[name], timeout=PATIENCE)
    slowest = 0.0
    while not call.done():
        begin = time.monotonic()
        harmless_server.health()
        slowest = max(slowest, time.monotonic() - begin)
    error, status = failure(call.result)
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "limit" in error.message
    assert slowest < 2


def test_a_text_that_is_too_long_is_refused_with_the_token_limit(harmless_server):
    for text in ("x" * 1_000_000, "x" * 100):
        error, _ = failure(lambda text=text: harmless_server.attribute(attribution(text)))
        assert "64" in error.message
        assert "tokens" in error.message


@pytest.mark.parametrize("text", ["m" * 1_000_000, "👩" * 500_000, "\0" * 1_000_000], ids=["m", "emoji", "NUL"])
def test_a_refusal_that_quotes_the_request_stays_short(harmless_server, text):
    """Trailers over 8 KiB are cut off by gRPC, and the refusal with them."""
    error, status = failure(lambda: harmless_server.attribute(attribution(model=text)))
    assert status.code() is grpc.StatusCode.NOT_FOUND
    assert len(error.message) < 2000
    assert "'fake'" in error.message


SECRET = "Quetzalcoatl"


def secret_requests():
    choice = messages.TokenChoice(text=SECRET)
    good = attribution(f"{SECRET} is", parts=[messages.PART_LAYERS])
    yield "Attribute", good
    yield "Attribute", attribution(f"{SECRET} crash")
    yield "Attribute", attribution(f"{SECRET} refuse")
    yield "Attribute", attribution(f"{SECRET} " * 9)
    yield "Attribute", attribution(SECRET, target=choice)
    yield "Attribute", attribution(SECRET, contrast=choice)
    yield "Attribute", attribution(SECRET, completion=messages.Completion(text=SECRET * 9))
    yield "Attribute", attribution(model=SECRET)
    yield "Attribute", chat(SECRET, role=SECRET)
    yield "Tokenize", messages.TokenizeRequest(text=SECRET)
    yield "AttributeStream", messages.AttributeStreamRequest(key=SECRET, request=good)
    yield "AttributeStream", messages.AttributeStreamRequest(key=SECRET, request=attribution(f"{SECRET} crash"))


def test_no_log_line_has_a_callers_text(server, caplog):
    """At the lowest level of every logger, gRPC's and asyncio's too, and through every kind of failure."""
    with caplog.at_level(logging.DEBUG):
        for method, request in secret_requests():
            data = request.SerializeToString()
            for sent in (data, data + b"\xff"):
                with suppress(grpc.RpcError):
                    call_with(server.channel, method, sent, PATIENCE)()
        assert server.attribute().explanations
    assert "failed" in caplog.text, "the log was captured"
    written = caplog.text + json.dumps([repr(vars(record)) for record in caplog.records])
    assert SECRET not in written
    assert PROMPT not in written
