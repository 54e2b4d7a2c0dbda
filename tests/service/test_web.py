"""The calls as JSON over HTTP: what gRPC callers may rely on holds here, too."""

import asyncio
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from google.protobuf import json_format
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server import web_calls, web_connection
from neuron_attribution_server.app import Application
from neuron_attribution_server.config import ServerConfig
from neuron_attribution_server.thread_worker import ThreadWorker
from neuron_attribution_server.web_calls import HTTP_STATUSES, SERVICE
from service.certificates import Authority, serial_number
from service.fakes import PROMPT, FakeEngine
from service.scraping import Scrape, free_address
from service.servers import PATIENCE, eventually, listening_address, running_server, server_process

ASKED = {"prompt": {"text": PROMPT}}
TOKEN = "alices-token"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "web.md"
SECRET = "Zanzibarquux"
REPEATED = 100


@contextmanager
def served(engine=None, **settings):
    with running_server(ThreadWorker(engine or FakeEngine()), web="localhost:0", **settings) as server:
        assert server.loaded.wait(PATIENCE)
        yield server


@pytest.fixture(scope="module")
def server():
    with served(maximum_request_bytes=4096) as server:
        yield server


def connection(address, context=None):
    if context is None:
        return http.client.HTTPConnection(address, timeout=PATIENCE)
    return http.client.HTTPSConnection(address, timeout=PATIENCE, context=context)


def ask(address, method="attribute", message=ASKED, context=None, **headers):
    """Status, headers and JSON of one call."""
    body = message if isinstance(message, bytes) else json.dumps(message)
    fields = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(connection(address, context)) as link:
        link.request("POST", f"/v1/{method}", body, fields)
        answer = link.getresponse()
        data = answer.read()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, answer.headers, json.loads(data) if is_json else data


def reasons(answer):
    return [detail["reason"] for detail in answer["details"] if "reason" in detail]


def test_an_attribution_is_that_of_grpc_as_protobuf_json(server):
    status, headers, answer = ask(server.web_address, x_request_id="mine-1")
    assert (status, headers["X-Request-Id"], headers["Cache-Control"]) == (200, "mine-1", "no-store")
    message = json_format.ParseDict(answer, messages.AttributeResponse())
    expected = server.attribute()
    assert message.explanations == expected.explanations
    assert message.tokens == expected.tokens


ABLATION = {"neurons": [{"ffn": {"layer": 1, "index": 2}}], "zero": True}
CALLS = {
    "attribute": (ASKED, "explanations"),
    "project_neuron": ({"neurons": [{"ffn": {"layer": 1, "index": 2}}]}, "projections"),
    "intervene": ({"prompt": {"text": PROMPT}, "sets": [{"interventions": [ABLATION]}]}, "results"),
    "tokenize": ({"text": " Paris"}, "tokens"),
    "get_model": ({}, "sizes"),
}
UNARY = [re.sub(r"\B([A-Z])", r"_\1", method.name).lower() for method in SERVICE.methods if not method.server_streaming]


@pytest.mark.parametrize("method", UNARY)
def test_every_call_but_the_stream_is_there(server, method):
    message, field = CALLS[method]
    status, _, answer = ask(server.web_address, method, message)
    assert status == 200
    assert answer[field]


@pytest.mark.parametrize("method", UNARY)
def test_every_call_is_documented(method):
    assert f"`{method}`" in DOCUMENTATION.read_text()


@pytest.mark.parametrize(
    ("message", "headers", "status", "reason"),
    [
        ({"prompt": {"text": ""}}, {}, 400, "INVALID_ARGUMENT"),
        ({"model": "gpt-5", **ASKED}, {}, 404, "MODEL_NOT_FOUND"),
        ({"promt": {}}, {}, 400, "MALFORMED_MESSAGE"),
        (b'{"prompt": {"text": "\\ud800"}}', {}, 400, "MALFORMED_MESSAGE"),
        (b"\xff", {}, 400, "MALFORMED_MESSAGE"),
        (b"[" * 4000, {}, 400, "MALFORMED_MESSAGE"),
        (ASKED, {"Content_Type": "text/plain"}, 400, "INVALID_ARGUMENT"),
        (ASKED, {"Grpc_Timeout": "soon"}, 400, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_wrong_is_told_as_a_status(server, message, headers, status, reason):
    got, _, answer = ask(server.web_address, message=message, **headers)
    assert (got, reasons(answer)) == (status, [reason])
    assert ask(server.web_address)[0] == 200


def test_a_wrong_field_is_named(server):
    *_, answer = ask(server.web_address, message={"prompt": {"text": ""}})
    violations = [each for detail in answer["details"] for each in detail.get("fieldViolations", ())]
    assert [violation["field"] for violation in violations] == ["prompt.text"]


def test_no_such_call(server):
    status, _, answer = ask(server.web_address, "attribute_stream")
    assert status == 501
    assert "/v1/attribute," in answer["message"]


def test_a_request_that_is_too_large_is_refused_unread(server):
    status, headers, _ = ask(server.web_address, message=b" " * 5000)
    assert status == 413
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/nothing", "/v1/attribute"])
def test_every_answer_carries_the_security_headers(server, path):
    link = connection(server.web_address)
    link.request("GET", path)
    headers = link.getresponse().headers
    link.close()
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["X-Frame-Options"], headers["Referrer-Policy"]) == ("DENY", "no-referrer")


def raw(address, head, body=b""):
    """The status and everything else that is answered to these bytes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as link:
        link.sendall(f"{head}\r\nHost: localhost\r\n".encode() + body)
        with link.makefile("rb") as answer:
            _, status, rest = answer.read().decode().split(" ", 2)
            return int(status), rest


CHUNKED = "POST /v1/attribute HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (f"GET / HTTP/1.1\r\nAuthorization: Bearer {SECRET * 1000}", b"\r\n", 400),
        (f"GET / HTTP/1.1\r\n{SECRET}", b"\r\n", 400),
        (CHUNKED, f"\r\n{SECRET}\r\n".encode(), 400),
        (f"{CHUNKED}\r\nContent-Encoding: gzip\r\nConnection: close", f"\r\nC\r\n{SECRET}\r\n0\r\n\r\n".encode(), 415),
        (f"GET / HTTP/1.1\r\nExpect: {SECRET}\r\nConnection: close", b"\r\n", 417),
    ],
)
def test_what_is_no_request_is_refused_and_not_logged(server, caplog, capfd, head, body, status):
    answered, answer = raw(server.web_address, head, body)
    assert answered == status
    assert "\r\nServer: neuron-attribution\r\n" in answer
    assert "\r\nX-Frame-Options: DENY\r\n" in answer
    if status != 417:
        assert json.loads(answer.partition("\r\n\r\n")[2])["code"] == 3
    assert ask(server.web_address)[0] == 200
    assert SECRET not in caplog.text + capfd.readouterr().err
    assert "Traceback" not in caplog.text


def test_a_bug_is_told_as_its_request_id_alone(server, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(web_calls, "_timeout", fail)
    status, headers, answer = ask(server.web_address, x_request_id="mine-2")
    assert (status, reasons(answer), headers["X-Request-Id"]) == (500, ["INTERNAL"], "mine-2")
    assert (answer["message"], headers["Server"]) == (
        "internal error; the server's log has it as request mine-2",
        "neuron-attribution",
    )
    assert "request mine-2 failed: RuntimeError" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:8080", 200),
        ("127.0.0.1:1", 200),
        ("127.8.8.8", 200),
        ("[::1]:8080", 200),
        ("rebound.example:8080", 421),
        ("localhost.rebound.example", 421),
        ("127.0.0.1.rebound.example", 421),
        ("192.168.1.1", 421),
        ("", 421),
    ],
)
def test_a_page_on_a_loopback_address_answers_to_no_strangers_name(server, host, status):
    assert ask(server.web_address, "get_model", {}, Host=host)[0] == status


def test_a_page_for_a_network_answers_to_any_name():
    with running_server(ThreadWorker(FakeEngine()), web="0.0.0.0:0") as server:
        assert server.loaded.wait(PATIENCE)
        address = f"127.0.0.1:{server.web_address.rpartition(':')[2]}"
        assert ask(address, "get_model", {}, Host="page.example")[0] == 200


def test_every_status_of_ours_has_an_http_status():
    from neuron_attribution.status import STATUS_CODES

    assert set(HTTP_STATUSES) == set(STATUS_CODES.values())


def test_without_a_right_token_nothing_is_answered(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    with served(token_file=str(tokens)) as server:
        for headers, reason in (({}, "TOKEN_MISSING"), ({"Authorization": "Bearer wrong"}, "TOKEN_INVALID")):
            status, answered, answer = ask(server.web_address, **headers)
            assert (status, reasons(answer), answered["WWW-Authenticate"]) == (401, [reason], "Bearer")
            for method, body in (("attribute", b"{"), ("attribute", b" " * 2**21), ("attribute_stream", b"")):
                assert ask(server.web_address, method, body, **headers)[0] == 401
        assert ask(server.web_address, Authorization=f"Bearer {TOKEN}")[0] == 200


def test_few_messages_are_converted_at_once(server, monkeypatch):
    parse, arrived, released = json_format.Parse, threading.Semaphore(0), threading.Event()

    def slowly(*given):
        arrived.release()
        assert released.wait(PATIENCE)
        return parse(*given)

    monkeypatch.setattr(json_format, "Parse", slowly)
    with ThreadPoolExecutor(8) as callers:
        answers = [callers.submit(ask, server.web_address) for _ in range(8)]
        assert all(arrived.acquire(timeout=PATIENCE) for _ in range(2))
        third = arrived.acquire(timeout=0.5)
        released.set()
        assert {answer.result()[0] for answer in answers} == {200}
    assert not third


def test_deadlines_and_callers_who_leave_end_what_waits():
    engine = FakeEngine()
    with served(engine, cache_bytes=0, metrics_listen="localhost:0") as server, engine:
        engine.hold()
        first = connection(server.web_address)
        first.request("POST", "/v1/attribute", json.dumps(ASKED), {"Content-Type": "application/json"})
        assert engine.started.wait(PATIENCE)
        status, _, answer = ask(server.web_address, Grpc_Timeout="200m")
        assert (status, reasons(answer)) == (504, ["DEADLINE_EXCEEDED"])
        leaving = connection(server.web_address)
        leaving.request("POST", "/v1/attribute", json.dumps(ASKED), {"Content-Type": "application/json"})
        scraped = lambda: Scrape(server.metrics_address)  # noqa: E731
        rpc = {"grpc_method": "Attribute", "grpc_service": "neuron_attribution.v1.NeuronAttributionService"}
        assert eventually(lambda: scraped().value("grpc_server_started_total", grpc_type="unary", **rpc) == 3)
        leaving.close()
        labels = {"grpc_type": "unary", "grpc_code": "Canceled", **rpc}
        assert eventually(lambda: scraped().value("grpc_server_handled_total", **labels) == 1)
        engine.released.set()
        assert first.getresponse().status == 200
        first.close()


def test_the_page_has_the_services_certificate_and_follows_its_files(tmp_path):
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    settings = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    context = ssl.create_default_context(cafile=authority.certificate)
    with served(**settings) as server:
        assert ask(server.web_address, context=context)[0] == 200
        other = authority.issue("other")
        pair.replace_by(other)
        port = int(server.web_address.rpartition(":")[2])
        shown = ssl.get_server_certificate(("localhost", port), ca_certs=authority.certificate)
        assert serial_number(shown.encode()) == serial_number(other.certificate.read_bytes())


def test_with_an_authority_the_page_asks_for_certificates(tmp_path):
    authority = Authority(tmp_path)
    pair, client = authority.issue("server"), authority.issue("client")
    settings = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    context = ssl.create_default_context(cafile=authority.certificate)
    with served(tls_client_authority=str(authority.certificate), **settings) as server:
        with pytest.raises(OSError, match=r"certificate required|reset|closed|EOF|pipe"):
            ask(server.web_address, context=context)
        context.load_cert_chain(client.certificate, client.key)
        assert ask(server.web_address, context=context)[0] == 200


def test_a_clients_session_does_not_outlive_its_authority(tmp_path):
    authority, former = Authority(tmp_path), Authority(tmp_path, "former")
    pair, client = authority.issue("server"), former.issue("client")
    settings = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(client.certificate, client.key)
    with served(tls_client_authority=str(former.certificate), **settings) as server:
        session, answer = greet(server.web_address, context)
        assert answer.startswith(b"HTTP/1.1 200 ")
        former.certificate.write_bytes(authority.certificate.read_bytes())
        for tried in (None, session):
            with suppress(OSError):
                assert greet(server.web_address, context, tried)[1] == b""
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions the server could not forget
        with pytest.raises(OSError, match=r"PROTOCOL_VERSION|reset|closed|EOF|pipe"):
            greet(server.web_address, context)


def greet(address, context, session=None):
    """The TLS session of a connection, and what GET / is answered on it."""
    port = int(address.rpartition(":")[2])
    with (
        socket.create_connection(("localhost", port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as link,
    ):
        link.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: link.recv(65536), b""))
        return link.session, answer


def test_a_stopping_server_answers_what_it_has_taken(monkeypatch, tmp_path):
    web, metrics = free_address(), free_address()
    monkeypatch.setenv("GATED_ENGINE", str(tmp_path))
    (tmp_path / "open").touch()
    settings = {"web": web, "metrics_listen": metrics, "cache_bytes": 0, "grace": 60.0}
    with server_process("make_gated_engine", module="faulty_engines", **settings) as process:
        assert listening_address(process)
        assert process.stdout.readline().startswith("ready")
        (tmp_path / "open").unlink()
        link = connection(web)
        link.request("POST", "/v1/attribute", json.dumps(ASKED), {"Content-Type": "application/json"})
        rpc = {"grpc_method": "Attribute", "grpc_service": "neuron_attribution.v1.NeuronAttributionService"}
        count = lambda: Scrape(metrics).value("grpc_server_started_total", grpc_type="unary", **rpc)  # noqa: E731
        assert eventually(lambda: count() == 1)
        process.terminate()
        assert eventually(lambda: Scrape(metrics).value("draining") == 1)
        (tmp_path / "open").touch()
        answer = link.getresponse()
        assert json.loads(answer.read())["explanations"]
        link.close()
        assert process.wait(PATIENCE) == 0


def test_an_address_in_use_and_a_missing_library_are_told_by_name(server):
    arguments = ["--model", "demo", "--listen", "localhost:0", "--web", server.web_address]
    command = [sys.executable, "-c", "import sys; from neuron_attribution.cli.main import main; sys.exit(main())"]
    taken = subprocess.run([*command, "serve", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert (taken.returncode, "cannot serve the web page on" in taken.stderr) == (1, True)
    command[2] = "import sys; sys.modules['aiohttp'] = None; " + command[2]
    missing = subprocess.run([*command, "serve", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert missing.returncode == 2
    assert "web needs aiohttp" in missing.stderr
    assert "neuron-attribution[server,web]" in missing.stderr


def failed_start(arguments, **environment):
    """What a server that cannot start says; it must be one line of ours, with exit status 1."""
    command = [sys.executable, "-c", "import sys; from neuron_attribution.cli.main import main; sys.exit(main())"]
    command += ["serve", "--model", "demo", "--listen", "localhost:0", "--web", "localhost:0", *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
    )
    own = [line for line in ended.stderr.splitlines() if line.startswith("neuron-attribution serve: ")]
    assert (ended.returncode, len(own), "Traceback" in ended.stderr) == (1, 1, False)
    return own[0]


def test_a_folder_too_long_for_a_socket_is_told(tmp_path):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    said = failed_start([], TMPDIR=str(long))
    assert "cannot serve the web page on localhost:0" in said
    assert "shorten TMPDIR" in said


def test_a_certificate_that_has_become_unreadable_is_told(tmp_path, capsys):
    pair = Authority(tmp_path).issue("server")
    config = ServerConfig(
        model="fake",
        listen="localhost:0",
        web="localhost:0",
        tls_certificate=str(pair.certificate),
        tls_key=str(pair.key),
    )
    application = Application(config, ThreadWorker(FakeEngine()))
    pair.certificate.write_text("")
    assert asyncio.run(application.run()) == 1
    said = capsys.readouterr().err
    assert "serve: cannot serve the web page on localhost:0: the web page's certificate cannot be read" in said


def test_a_body_that_does_not_come_is_not_waited_for_longer_than_the_call_may_take(server):
    with closing(connection(server.web_address)) as link:
        link.putrequest("POST", "/v1/attribute")
        for name, value in {"Content-Type": "application/json", "Content-Length": "99", "Grpc-Timeout": "100m"}.items():
            link.putheader(name, value)
        link.endheaders(b"{")
        answer = link.getresponse()
        assert answer.status == 504
        assert json.loads(answer.read())["code"] == 4


def test_an_idle_connection_is_closed(monkeypatch):
    monkeypatch.setattr(web_connection, "IDLE_SECONDS", 0.5)
    with served() as server, closing(connection(server.web_address)) as link:
        link.request("GET", "/")
        link.getresponse().read()
        assert link.sock.recv(1) == b"", "closed by the other end, long before this one's patience ends"


def test_a_caller_that_does_not_read_is_hung_up_on(monkeypatch, caplog):
    """It asks for the page's scripts again and again and reads nothing, until no buffer takes any more."""
    monkeypatch.setattr(web_connection, "SENDING_SECONDS", 0.5)
    with served() as server:
        host, port = server.web_address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as link:
            script = re.search(rb'src="/?([^"]+)"', page(server.web_address))[1].decode()
            with suppress(ConnectionError):
                for _ in range(REPEATED):
                    link.sendall(f"GET /{script} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert eventually(lambda: "did not read an answer" in caplog.text)
            received = 0
            with suppress(ConnectionResetError):
                while data := link.recv(2**20):
                    received += len(data)
            assert received < REPEATED * len(page(server.web_address, script)), "the connection ends amid the answers"
        assert ask(server.web_address)[0] == 200


def page(address, path=""):
    with closing(connection(address)) as link:
        link.request("GET", f"/{path}")
        return link.getresponse().read()
