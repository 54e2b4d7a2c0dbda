"""The calls as JSON over HTTP: what gRPC callers may rely on holds here, too."""

import json
import re
import socket
from pathlib import Path

import pytest
from google.protobuf import json_format
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.web import requests as web_requests
from neuron_attribution_server.front_end.web.answers import HTTP_STATUSES
from neuron_attribution_server.front_end.web.calls import SERVICE
from service.browsing import ASKED, ask, connection, reasons, served
from service.fakes import PROMPT
from service.servers import PATIENCE

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "web.md"
SECRET = "Zanzibarquux"


@pytest.fixture(scope="module")
def server():
    with served(maximum_request_bytes=4096) as server:
        yield server


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
    "trace": (ASKED, "nodes"),
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

    monkeypatch.setattr(web_requests, "timeout", fail)
    status, headers, answer = ask(server.web_address, x_request_id="mine-2")
    assert (status, reasons(answer), headers["X-Request-Id"]) == (500, ["INTERNAL"], "mine-2")
    assert (answer["message"], headers["Server"]) == (
        "internal error; the server's log has it as request mine-2",
        "neuron-attribution",
    )
    assert "request mine-2 failed: RuntimeError" in caplog.text
    assert SECRET not in caplog.text


def test_every_status_of_ours_has_an_http_status():
    from neuron_attribution.transport.status import STATUS_CODES

    assert set(HTTP_STATUSES) == set(STATUS_CODES.values())
