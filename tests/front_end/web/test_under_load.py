"""Callers who send too much, or half of it: another tenant's calls are answered all the same."""

import hashlib
import json
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psutil
import pytest
from service.browsing import JSON, ask, connection, reasons
from service.certificates import Authority
from service.hostile import half_sent, is_answered, still_open
from service.scraping import free_address
from service.servers import eventually, listening_address, server_process

pytestmark = pytest.mark.process

LARGE = 3_900_000
EMPTY_SETS = b'{"sets":[' + b",".join([b"{}"] * (LARGE // 3)) + b"]}"
"""Of all bodies of its size the one that takes longest to read, of those that can be read."""
SOON = 15.0
"""Seconds: much longer than a short call takes on a busy machine, much less than sixteen such bodies took."""
CONNECTIONS = 12


@dataclass
class Served:
    """A server process and its web page."""

    web: str
    process: psutil.Process


@contextmanager
def serving(**settings):
    web = free_address()
    with server_process(web=web, **settings) as process:
        assert listening_address(process)
        assert process.stdout.readline().startswith("ready"), process.stderr.read()
        yield Served(web, psutil.Process(process.pid))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    lines = [f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("alice", "bob")]
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def shared(tokens):
    """A server whom nothing in this module may break."""
    with serving(token_file=tokens) as served:
        yield served


def bearer(name):
    return {"Authorization": f"Bearer {name}"}


def tokenize(served, name="bob", **headers):
    """The status of a small call."""
    return ask(served.web, "tokenize", {"text": " Paris"}, **bearer(name), **headers)[0]


def test_large_bodies_of_one_tenant_do_not_hold_up_another(shared):
    with ThreadPoolExecutor(16) as callers:
        large = [callers.submit(ask, shared.web, "intervene", EMPTY_SETS, **bearer("alice")) for _ in range(16)]
        calls = []
        while not calls or not all(each.done() for each in large):
            begun = time.monotonic()
            calls.append((tokenize(shared), time.monotonic() - begun < SOON))
    assert set(calls) == {(200, True)}
    answers = [each.result() for each in large]
    assert {status for status, _, _ in answers} <= {400, 429}
    assert any("values, too many" in answer["message"] for _, _, answer in answers)


def test_the_bytes_of_one_tenants_requests_that_are_read_are_bounded(shared):
    """Half of 64 MiB may be: each lacks the last byte."""
    made = [unfinished(shared, "alice") for _ in range(12)]
    try:
        assert eventually(lambda: sum(map(is_answered, made)) >= 3)
        for each in filter(is_answered, made):
            answer = each.getresponse()
            said = reasons(json.loads(answer.read()))
            assert (answer.status, answer.headers["Retry-After"], said) == (429, "1", ["TENANT_QUEUE_FULL"])
        status, _, answer = ask(shared.web, "tokenize", {"text": "a" * LARGE}, **bearer("bob"))
        assert (status, "characters are more" in answer["message"]) == (400, True), "bob's is read"
        assert tokenize(shared, "alice") == 200
    finally:
        for each in made:
            each.close()
    assert eventually(lambda: ask(shared.web, "tokenize", {"text": "a" * LARGE}, **bearer("alice"))[0] == 400)


def unfinished(served, name):
    """A connection on which all but the last byte of a large body is sent."""
    made = connection(served.web)
    made.putrequest("POST", "/v1/tokenize")
    for header, value in {**JSON, **bearer(name), "Content-Length": str(LARGE)}.items():
        made.putheader(header, value)
    made.endheaders()
    made.send((b'{"text":"' + b"a" * LARGE)[: LARGE - 1])
    return made


@pytest.mark.parametrize("time_allowed", ["1n", "1u", "0S"])
@pytest.mark.parametrize("method", ["tokenize", "get_model"])
def test_a_call_that_has_no_time_is_not_answered_late(shared, method, time_allowed):
    message = {"text": " Paris"} if method == "tokenize" else {}
    for _ in range(5):
        status, _, answer = ask(shared.web, method, message, Grpc_Timeout=time_allowed, **bearer("bob"))
        assert (status, reasons(answer)) == (504, ["DEADLINE_EXCEEDED"])


SLOW_JSON = """
import time
from google.protobuf import json_format
parse, write = json_format.Parse, json_format.MessageToJson
def parse_slowly(text, *given):
    if b"slowly" in text:
        open({file!r}, "a").write("begun\\n")
        time.sleep(1.5)
    return parse(text, *given)
def write_slowly(message, **options):
    if message.ByteSize() > 4096:
        time.sleep(1.5)
    return write(message, **options)
json_format.Parse, json_format.MessageToJson = parse_slowly, write_slowly
"""
SLOWLY = b'{"text": "slowly"}' + b" " * 4096
MANY_NEURONS = {"neurons": [{"ffn": {"layer": 1, "index": 2}}] * 500}


@pytest.fixture(scope="module")
def slow(tmp_path_factory, tokens):
    """A server that takes more than a second to read a certain JSON, and to write a long one; and how often it did."""
    file = tmp_path_factory.mktemp("slow") / "begun"
    file.touch()
    with serving(before=SLOW_JSON.format(file=str(file)), token_file=tokens) as served:
        yield served, lambda: len(file.read_text().splitlines())


@pytest.mark.parametrize(("method", "message"), [("tokenize", SLOWLY), ("project_neuron", MANY_NEURONS)])
def test_the_deadline_covers_the_conversion_of_requests_and_answers(slow, method, message):
    served, _ = slow
    status, _, answer = ask(served.web, method, message, Grpc_Timeout="500m", **bearer("bob"))
    assert (status, reasons(answer)) == (504, ["DEADLINE_EXCEEDED"])
    assert ask(served.web, method, message, **bearer("bob"))[0] == 200


def test_for_callers_who_have_gone_nothing_is_converted(slow):
    served, begun = slow
    before = begun()
    leaving = [connection(served.web) for _ in range(6)]
    for each in leaving:
        each.request("POST", "/v1/tokenize", SLOWLY, JSON | bearer("alice"))
    assert eventually(lambda: begun() > before)
    for each in leaving:
        each.close()
    assert ask(served.web, "tokenize", SLOWLY, **bearer("alice"))[0] == 200
    assert begun() - before <= 3, "the first, perhaps one that was about to begin, and the last"


@pytest.fixture(scope="module")
def narrow():
    """A server that takes few connections."""
    with serving(web_connections=CONNECTIONS) as served:
        yield served


def test_half_sent_requests_keep_nobody_out_and_cost_few_descriptors(narrow):
    with closing(connection(narrow.web)) as idle:
        assert greeted(idle)
        before = narrow.process.num_fds()
        with half_sent(narrow.web, 5 * CONNECTIONS) as links:
            assert ask(narrow.web, "tokenize", {"text": " Paris"})[0] == 200
            assert eventually(lambda: narrow.process.num_fds() <= before + CONNECTIONS)
            assert still_open(links) < CONNECTIONS
            assert greeted(idle), "whoever has asked before is given up last"


def greeted(made):
    """Whether the page comes on a connection, which is kept."""
    made.request("GET", "/")
    answer = made.getresponse()
    return answer.status == 200 and bool(answer.read())


def test_half_made_tls_connections_do_not_either(tmp_path):
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    files = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    context = ssl.create_default_context(cafile=authority.certificate)
    with serving(web_connections=CONNECTIONS, **files) as served:
        assert ask(served.web, "tokenize", {"text": " Paris"}, context=context)[0] == 200
        before = served.process.num_fds()
        with half_sent(served.web, 5 * CONNECTIONS, b"\x16\x03\x01") as links:
            assert ask(served.web, "tokenize", {"text": " Paris"}, context=context)[0] == 200
            assert eventually(lambda: served.process.num_fds() <= before + CONNECTIONS)
            assert still_open(links) < CONNECTIONS


def test_while_all_connections_are_at_work_another_is_closed_at_once(narrow):
    made = [half_a_body(narrow.web) for _ in range(CONNECTIONS)]
    with pytest.raises(ConnectionError):
        ask(narrow.web, "tokenize", {"text": " Paris"})
    made.pop().close()
    assert eventually(lambda: is_served(narrow.web))
    for each in made:
        each.close()


def half_a_body(address):
    """A connection on which a call is being read."""
    made = connection(address)
    made.putrequest("POST", "/v1/tokenize")
    for header, value in {**JSON, "Content-Length": "99", "Expect": "100-continue"}.items():
        made.putheader(header, value)
    made.endheaders()
    assert made.sock.recv(len("HTTP/1.1 100 Continue\r\n\r\n")), "told to go on: it is at work"
    return made


def is_served(address):
    try:
        return ask(address, "tokenize", {"text": " Paris"})[0] == 200
    except ConnectionError:
        return False


PATIENCE_OF_THE_SERVER = """
from neuron_attribution_server.front_end.http import connection as http_connection
http_connection.HEADER_SECONDS = 1.0
"""


def test_headers_that_do_not_come_are_not_waited_for():
    with (
        serving(before=PATIENCE_OF_THE_SERVER) as served,
        half_sent(served.web, 3) as links,
        closing(connection(served.web)) as made,
    ):
        assert greeted(made)
        assert eventually(lambda: still_open(links) == 0)
        assert greeted(made), "whoever has asked may take time for more"
