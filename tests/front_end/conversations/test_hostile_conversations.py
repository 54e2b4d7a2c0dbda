"""A server process meets hostile templates and conversations: a clear status in time, and other tenants unaffected."""

import hashlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from service.conversing import HOSTILE, chat, talk
from service.servers import PATIENCE, RunningServer, eventually, failure, listening_address, server_process

pytestmark = pytest.mark.process

SECONDS = 20.0
"""A hostile conversation has its status by then: ten times what it takes at most, for machines that do more beside."""
AT_ONCE = 5.0
"""Others have their answers by then, in the same way."""
MALLORY, ALICE = ({"metadata": (("authorization", f"Bearer {name}"),)} for name in ("mallory", "alice"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Each tenant's token is its name."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    lines = (f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("mallory", "alice"))
    tokens.write_text("".join(lines))
    return {"factory": "make_chatting_engine", "module": "conversing", "token_file": str(tokens), "cache_bytes": 0}


@pytest.fixture(scope="module")
def process(settings):
    with server_process(**settings) as process:
        yield process


@pytest.fixture(scope="module")
def server(process):
    with grpc.insecure_channel(listening_address(process)) as channel:
        assert process.stdout.readline().startswith("ready")
        server = RunningServer("", channel, None)
        server.attribute(chat("The"), **ALICE)
        yield server


def renderers(process):
    """The ids of the processes that render."""
    children = [id for path in Path(f"/proc/{process.pid}/task").glob("*/children") for id in path.read_text().split()]
    lines = {int(id): Path(f"/proc/{id}/cmdline") for id in children}
    return [id for id, line in lines.items() if line.exists() and b"conversations.child" in line.read_bytes()]


def refused(server, request, **options):
    """The error of a hostile request, and the seconds until it came."""
    begun = time.monotonic()
    error, status = failure(lambda: server.attribute(request, **(options or MALLORY)))
    return error.reason, status.code(), time.monotonic() - begun


def serve_others_until(server, ended):
    """Others' texts and conversations are answered at once, until what is hostile has ended."""
    served = 0
    while not ended() or not served:
        for request in (None, chat("The")):
            begun = time.monotonic()
            answer = server.attribute(request, **ALICE)
            taken = time.monotonic() - begun
            assert answer.explanations
            assert taken < AT_ONCE
        served += 1


def deep(levels):
    return "[" * levels + "]" * levels


CONVERSATIONS = {
    **{name: chat("x", conversation={"template": name}) for name in HOSTILE},
    "a hundred thousand messages": chat(*["x"] * 100_000),
    "a hundred thousand tools": chat("x", conversation={"tools": [""] * 100_000}),
    "a million characters": chat("x" * 1_000_000),
    "a million lists": messages.AttributeRequest(
        prompt={"conversation": {"messages": [{"role": "u", "fields": f'{{"x": [{",".join(["[]"] * 1_000_000)}]}}'}]}}
    ),
    "fields without end": messages.AttributeRequest(
        prompt={"conversation": {"messages": [{"role": "u", "content": "x", "fields": "[" * 1000}]}}
    ),
}
REASONS = {"INVALID_ARGUMENT", "CHAT_TEMPLATE_FAILED", "CHAT_TEMPLATE_TAKES_TOO_LONG"}
CODES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_hostile_one_is_refused_by_name_and_others_are_served_meanwhile(server, name):
    begun = time.monotonic()
    call = server.stub.Attribute.future(CONVERSATIONS[name], timeout=PATIENCE, **MALLORY)
    serve_others_until(server, call.done)
    assert time.monotonic() - begun < SECONDS
    error, status = failure(call.result)
    assert status.code() in CODES
    assert error.reason in REASONS


@pytest.mark.parametrize("name", ["writes", "doubles"])
def test_a_template_has_little_memory(server, name):
    error, _ = failure(lambda: server.attribute(CONVERSATIONS[name], **MALLORY))
    assert error.reason == "CHAT_TEMPLATE_FAILED"
    assert "more memory than it may" in error.message


def test_values_may_be_nested_however_deeply(server):
    """None is the server's own failure: json's recursion ends at other depths where it is read, sent and written."""
    for levels in (*range(880, 1000, 8), 20, 100):
        tool = f'{{"name": "f", "arguments": {deep(levels)}}}'
        request = messages.TokenizeRequest(conversation=talk("x", tools=[tool], template="writes_tools"))
        try:
            assert server.stub.Tokenize(request, timeout=PATIENCE, **MALLORY).text.count("[") == levels
            succeeded = levels
        except grpc.RpcError as error:
            assert error.code() in CODES  # noqa: PT017 - both may be
    assert succeeded == 100


def test_many_hostile_ones_at_once_hold_nobody_up(server):
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(refused, server, CONVERSATIONS["loops"]) for _ in range(40)]
        serve_others_until(server, lambda: all(each.done() for each in asked))
        found = [each.result() for each in asked]
    assert {reason for reason, _, _ in found} == {"CHAT_TEMPLATE_TAKES_TOO_LONG", "QUEUE_FULL"}
    assert max(seconds for _, _, seconds in found) < SECONDS


def test_callers_that_go_away_hold_nobody_up(server, process):
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:
        calls = [server.stub.Attribute.future(CONVERSATIONS["loops"], timeout=PATIENCE, **MALLORY) for _ in range(9)]
        serve_others_until(server, lambda: True)
        for call in calls:
            call.cancel()
    assert len(renderers(process)) <= 2


def test_many_callers_at_once_are_all_answered(server):
    calls = [server.stub.Attribute.future(chat("The", " capital"), timeout=PATIENCE, **ALICE) for _ in range(100)]
    assert all(len(call.result().origins) == len(call.result().tokens) for call in calls)


def test_a_process_that_others_end_is_started_again_unnoticed(server, process):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        for id in renderers(process):
            os.kill(id, number)
        assert server.attribute(chat("The"), **ALICE).origins


def test_one_that_is_ended_while_it_renders_says_so(server, process):
    begun = time.monotonic()
    call = server.stub.Attribute.future(CONVERSATIONS["loops"], timeout=PATIENCE, **MALLORY)
    while not call.done():
        for id in renderers(process):
            os.kill(id, signal.SIGKILL)
        time.sleep(0.05)
    error, _ = failure(call.result)
    assert error.reason == "CHAT_TEMPLATE_FAILED"
    assert time.monotonic() - begun < SECONDS
    assert server.attribute(chat("The"), **ALICE).origins


def test_one_that_is_stuck_is_replaced_and_another_tenants_conversation_does_not_wait(server, process):
    (stuck, *_) = renderers(process)
    server.attribute(chat("The"), **ALICE)
    for id in renderers(process):
        os.kill(id, signal.SIGSTOP)
    reason, _, seconds = refused(server, chat("The"))
    assert (reason, seconds < SECONDS) == ("CHAT_TEMPLATE_TAKES_TOO_LONG", True)
    assert stuck not in renderers(process) or len(renderers(process)) > 1
    eventually(lambda: _served(server))


def _served(server):
    try:
        return bool(server.attribute(chat("The"), **ALICE).origins)
    except grpc.RpcError:
        return False


def test_a_drain_answers_what_is_rendered_and_leaves_no_process(settings):
    with server_process(**settings) as process, grpc.insecure_channel(listening_address(process)) as channel:
        assert process.stdout.readline().startswith("ready")
        assert eventually(lambda: len(renderers(process)) == 1), "one is there before anybody asks"
        server = RunningServer("", channel, None)
        server.attribute(chat("The"), **ALICE)
        begun = time.monotonic()
        hostile = server.stub.Attribute.future(CONVERSATIONS["loops"], timeout=PATIENCE, **MALLORY)
        others = [server.stub.Attribute.future(chat("The"), timeout=PATIENCE, **ALICE) for _ in range(20)]
        others[0].result()
        rendering = renderers(process)
        process.send_signal(signal.SIGTERM)
        assert all(call.result().origins for call in others)
        error, _ = failure(hostile.result)
        assert error.reason == "CHAT_TEMPLATE_TAKES_TOO_LONG"
        assert time.monotonic() - begun < SECONDS
        assert process.wait(PATIENCE) == 0
        assert rendering
        assert eventually(lambda: not any(Path(f"/proc/{id}").exists() for id in rendering))
