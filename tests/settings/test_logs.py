"""Log lines of real server processes: what they hold, and what they must never hold."""

import hashlib
import json
import logging
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import grpc
import numpy
import pytest
from grpc_health.v1 import health_pb2
from neuron_attribution import Client, NeuronAttributionError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.calls.prompt_digest import prompt_digest
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.services import SERVICE
from neuron_attribution_server.settings.logs import JsonFormatter, TextFormatter
from service.collector import collecting
from service.conversing import chat, talk
from service.demo_server import serving
from service.fakes import FakeEngine
from service.raw_http2 import RawPeer
from service.servers import (
    PATIENCE,
    RunningServer,
    attribution,
    failure,
    listening_address,
    running_server,
    server_process,
)

pytestmark = pytest.mark.process

PROMPT = "Zanzibarquux whispers 8301 lighthouses"
TOKEN = "letmein-5f1d9c"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "observability.md"
CALL = "neuron_attribution_server.front_end.calls.call_log"


@contextmanager
def logged(log, *, tokens=None, **settings):
    """A server process that logs into a file, and its stub."""
    if tokens is not None:
        tokens.write_text(f"alice {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
        settings["token_file"] = str(tokens)
    with log.open("w") as errors, server_process(errors=errors, cache_bytes=0, **settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        with grpc.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
            yield RunningServer(address, channel, None)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def calls(log):
    return [line for line in lines(log) if line["logger"] == CALL]


def test_a_call_is_one_json_line(tmp_path):
    log = tmp_path / "log"
    bearer = (("authorization", f"Bearer {TOKEN}"), ("x-request-id", "request-1"))
    with (
        collecting() as collector,
        logged(log, tokens=tmp_path / "tokens", log_format="json", trace_endpoint=collector.endpoint) as server,
    ):
        trace = "a" * 32
        response = server.attribute(
            attribution(PROMPT), metadata=(*bearer, ("traceparent", f"00-{trace}-{'b' * 16}-01"))
        )
    ids = [token.id for token in response.tokens]
    [line] = calls(log)
    [example] = [json.loads(text) for text in DOCUMENTATION.read_text().splitlines() if text.startswith("{")]
    assert list(line) == list(example), "the documentation shows such a line"
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert 0 < line.pop("seconds") < PATIENCE
    assert line == {
        "level": "info",
        "logger": CALL,
        "process": "MainProcess",
        "message": "call ended",
        "method": "Attribute",
        "code": "OK",
        "tenant": "alice",
        "tokens": len(ids),
        "prompt_sha256": hashlib.sha256(numpy.array(ids, "<u4").tobytes()).hexdigest()[:12],
        "request_id": "request-1",
        "trace_id": trace,
    }


def test_the_same_prompt_has_the_same_hash_and_another_one_another():
    assert prompt_digest((1, 2, 3)) == prompt_digest((1, 2, 3)) != prompt_digest((1, 2, 4))
    assert prompt_digest("abc") == hashlib.sha256(b"abc").hexdigest()[:12]


def test_a_failing_call_says_why_and_its_error_has_its_ids(tmp_path):
    log = tmp_path / "log"
    with logged(log, log_format="json") as server:
        failure(lambda: server.attribute(attribution(" crash"), metadata=(("x-request-id", "request-2"),)))
        failure(lambda: server.attribute(attribution("")))
    crashed, invalid = calls(log)
    assert (crashed["code"], crashed["reason"], crashed["request_id"]) == ("Internal", "INTERNAL", "request-2")
    assert (invalid["code"], invalid["reason"]) == ("InvalidArgument", "INVALID_ARGUMENT")
    assert "tokens" not in invalid
    assert "tenant" not in invalid
    worker, front_end = (line for line in lines(log) if "exception" in line)
    assert (worker["process"], worker["level"]) == ("worker-0", "error")
    assert "KeyError" in worker["exception"]
    assert (front_end["process"], front_end["request_id"]) == ("MainProcess", "request-2")


def test_a_stream_is_one_line_and_a_text_that_is_tokenized_counts_its_characters(tmp_path):
    log = tmp_path / "log"
    with logged(log, log_format="json") as server:
        items = [messages.AttributeStreamRequest(key=str(n), request=attribution(PROMPT)) for n in range(3)]
        responses = list(server.stub.AttributeStream(iter(items), timeout=PATIENCE))
        server.stub.Tokenize(messages.TokenizeRequest(text=PROMPT), timeout=PATIENCE)
        server.health()
    stream, tokenize = calls(log)
    tokens = sum(len(each.response.tokens) for each in responses)
    assert (stream["method"], stream["items"], stream["tokens"]) == ("AttributeStream", 3, tokens)
    assert "prompt_sha256" not in stream
    assert (tokenize["method"], tokenize["characters"]) == ("Tokenize", len(PROMPT))
    assert tokenize["prompt_sha256"] == prompt_digest(PROMPT)


def test_text_lines_are_for_people(tmp_path):
    log = tmp_path / "log"
    with logged(log, log_format="text") as server:
        server.attribute(attribution(PROMPT), metadata=(("x-request-id", "request-3"),))
        server.health()
    [line] = [line for line in log.read_text().splitlines() if "call ended" in line]
    assert f"INFO MainProcess {CALL}: call ended method=Attribute code=OK seconds=0." in line
    assert line.endswith(" request_id=request-3")
    assert "prompt_sha256=" in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_prompt_and_no_token_is_ever_logged(tmp_path, log_format):
    """At the level that tells most, whatever goes wrong; length and hash are there instead."""
    log = tmp_path / "log"
    right, wrong = ((("authorization", f"Bearer {token}"),) for token in (TOKEN, f"{TOKEN}-wrong"))
    chatting = {"factory": "make_chatting_engine", "module": "conversing"}
    settings = {"log_format": log_format, "log_level": "debug", "restarts": 9, **chatting}
    with logged(log, tokens=tmp_path / "tokens", **settings) as server:
        ids = [token.id for token in server.attribute(attribution(PROMPT), metadata=right).tokens]
        for request in bad_requests():
            failure(lambda request=request: server.attribute(request, metadata=right))
        failure(lambda: server.attribute(attribution(PROMPT), metadata=wrong))
        failure(lambda: server.stub.Attribute(attribution(PROMPT), timeout=0.0001, metadata=right))
        items = [messages.AttributeStreamRequest(key=PROMPT, request=request) for request in bad_requests()]
        list(server.stub.AttributeStream(iter(items), timeout=PATIENCE, metadata=right))
        server.stub.Tokenize(messages.TokenizeRequest(text=PROMPT), timeout=PATIENCE, metadata=right)
        server.stub.Tokenize(messages.TokenizeRequest(conversation=talk(PROMPT)), timeout=PATIENCE, metadata=right)
        raw = server.channel.unary_unary(f"/{SERVICE}/Attribute")
        failure(lambda: raw(PROMPT.encode(), timeout=PATIENCE, metadata=right))
        failure(lambda: server.channel.unary_unary(f"/{SERVICE}/{PROMPT[:12]}")(b"", timeout=PATIENCE, metadata=right))
        server.health()
    text = log.read_text()
    assert text.count("call ended") >= len(list(bad_requests())) + 6
    assert "Traceback" in text, "the errors of a crash are logged"
    for secret in (PROMPT, PROMPT[:12], "whispers", "8301", TOKEN, str(ids)[1:-1]):
        assert secret not in text
    assert str(len(ids)) in text
    assert prompt_digest(ids) in text


def bad_requests():
    """Requests that are refused, or fail in the worker, each in a way of its own."""
    yield attribution(f"{PROMPT} crash")
    yield attribution(f"{PROMPT} refuse")
    yield attribution(f"{PROMPT} die")
    yield attribution(PROMPT, target={"text": PROMPT})
    yield attribution(PROMPT, model=PROMPT)
    yield attribution(40 * PROMPT)
    yield attribution(PROMPT, top_k=10**6)
    yield attribution(PROMPT, neurons=[{"ffn": {"layer": 99, "index": 1}}])
    yield chat(f"{PROMPT} crash")
    yield chat(PROMPT, role=PROMPT[:60], conversation={"continue_final_message": True, "template": "is_broken"})
    yield chat(PROMPT, conversation={"template": PROMPT})
    yield chat(PROMPT, conversation={"template": "loops"})
    yield chat(PROMPT, conversation={"arguments": PROMPT})
    yield chat(40 * PROMPT)


def test_the_real_model_logs_no_prompt_either(tmp_path):
    log = tmp_path / "log"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    arguments = ("--log-level", "debug", "--log-format", "json", "--token-file", str(tokens))
    with (
        log.open("w") as errors,
        serving(*arguments, errors=errors) as (address, _),
        Client(address, token=TOKEN, timeout=PATIENCE) as client,
    ):
        result = client.attribute(PROMPT, top_k=2)
        with suppress(NeuronAttributionError):
            client.attribute(PROMPT, target=PROMPT)
        with suppress(NeuronAttributionError):
            client.attribute(PROMPT, completion=2000 * PROMPT)
    for secret in ("Zanzibar", "whispers", "lighthouse", TOKEN):
        assert secret not in log.read_text()
    assert calls(log)[0]["prompt_sha256"] == prompt_digest([token.id for token in result.tokens])
    assert [line["code"] for line in calls(log)][1:] == ["InvalidArgument"] * 2


def test_a_caller_that_leaves_amid_an_answer_is_no_error(tmp_path):
    log = tmp_path / "log"
    with logged(log) as server:
        for _ in range(5):
            with RawPeer(server.address) as peer:
                for name in ("Check", "Watch"):
                    request = health_pb2.HealthCheckRequest()
                    peer.open(f"/grpc.health.v1.Health/{name}", request.SerializeToString())
                time.sleep(0.1)  # their answers are under way, and find no window
        server.attribute()
    assert [line for line in lines(log) if line["level"] == "error"] == []


def test_a_line_s_fields_are_there_for_other_handlers_too(caplog):
    with caplog.at_level(logging.INFO, CALL), running_server(ThreadWorker(FakeEngine())) as server:
        assert server.loaded.wait(PATIENCE)
        server.attribute(metadata=(("x-request-id", "request-4"),))
    [record] = [record for record in caplog.records if record.name == CALL]
    assert record.fields["request_id"] == "request-4"


def test_json_lines_hold_whatever_is_logged():
    formatter = JsonFormatter(lambda: {"request_id": "request-5"})
    record = logging.LogRecord("name", logging.WARNING, "", 1, "two\nlines of %s", ("\u2028",), None)
    text = formatter.format(record)
    assert "\n" not in text
    assert text.isascii()
    line = json.loads(text)
    assert (line["message"], line["request_id"], line["level"]) == ("two\nlines of \u2028", "request-5", "warning")


def test_an_exception_follows_the_fields_of_a_text_line():
    try:
        raise ValueError("wrong")
    except ValueError as error:
        record = logging.LogRecord("name", logging.ERROR, "", 1, "failed", (), (type(error), error, None))
    record.fields = {"code": "Internal"}
    assert TextFormatter("%(message)s").format(record).startswith("failed code=Internal\n")
