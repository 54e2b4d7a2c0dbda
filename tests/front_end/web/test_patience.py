"""How long the web page waits: for a call, a body, a next request, and for whoever reads an answer."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from neuron_attribution_server.front_end.http import connection as http_connection
from neuron_attribution_server.front_end.web import calls as web_calls
from neuron_attribution_server.front_end.web import requests as web_requests
from service.browsing import ASKED, JSON, ask, connection, page, reasons, served
from service.fakes import FakeEngine
from service.hostile import link, try_to_send
from service.scraping import Scrape
from service.servers import PATIENCE, eventually

REPEATED = 100


@pytest.fixture(scope="module")
def server():
    with served() as server:
        yield server


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


def test_a_body_that_does_not_come_is_not_waited_for_longer_than_the_call_may_take(server):
    with closing(connection(server.web_address)) as link:
        link.putrequest("POST", "/v1/attribute")
        for name, value in {"Content-Type": "application/json", "Content-Length": "99", "Grpc-Timeout": "100m"}.items():
            link.putheader(name, value)
        link.endheaders(b"{")
        answer = link.getresponse()
        assert answer.status == 504
        assert json.loads(answer.read())["code"] == 4


def test_a_body_is_not_waited_for_for_ever_whatever_time_the_call_is_allowed(server, monkeypatch):
    monkeypatch.setattr(web_requests, "BODY_SECONDS", 0.2)
    with closing(connection(server.web_address)) as made:
        made.putrequest("POST", "/v1/attribute")
        for name, value in {**JSON, "Content-Length": "99", "Grpc-Timeout": "1H"}.items():
            made.putheader(name, value)
        made.endheaders(b"{")
        answer = made.getresponse()
        assert (answer.status, reasons(json.loads(answer.read()))) == (504, ["DEADLINE_EXCEEDED"])


def test_an_idle_connection_is_closed(monkeypatch):
    monkeypatch.setattr(http_connection, "IDLE_SECONDS", 0.5)
    with served() as server, closing(connection(server.web_address)) as link:
        link.request("GET", "/")
        link.getresponse().read()
        assert link.sock.recv(1) == b"", "closed by the other end, long before this one's patience ends"


def test_a_caller_that_does_not_read_is_hung_up_on(monkeypatch, caplog):
    """It asks for the page's scripts again and again and reads nothing, until no buffer takes any more."""
    monkeypatch.setattr(http_connection, "SENDING_SECONDS", 0.5)
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


def test_an_answer_is_not_waited_for_longer_than_its_call_may_take(server, caplog):
    """Nothing of the answers is read, and each may take a second."""
    body = json.dumps({"neurons": [{"ffn": {"layer": 1, "index": 2}}] * 1000})
    head = "POST /v1/project_neuron HTTP/1.1\r\nHost: localhost\r\nGrpc-Timeout: 1S\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with link(server.web_address) as unread, ThreadPoolExecutor(1) as sender:
        sending = sender.submit(try_to_send, unread, request * REPEATED)
        assert eventually(lambda: "did not read an answer in time" in caplog.text)
        sending.result()
    assert ask(server.web_address)[0] == 200


def test_the_bytes_of_answers_that_are_not_read_are_bounded(monkeypatch):
    monkeypatch.setattr(web_calls, "_ANSWER_BYTES", 400_000)
    asked = {"neurons": [{"ffn": {"layer": 1, "index": 2}}] * 5000}
    body = json.dumps(asked)
    head = f"POST /v1/project_neuron HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/json\r\n\r\n{body}".encode()
    with served(maximum_neurons=5000) as server, ThreadPoolExecutor(1) as sender:

        def is_refused():
            status, headers, answer = ask(server.web_address, "project_neuron", asked)
            return status == 429 and (headers["Retry-After"], reasons(answer)) == ("1", ["QUEUE_FULL"])

        with link(server.web_address) as unread:
            sender.submit(try_to_send, unread, request * REPEATED)
            assert eventually(is_refused)
            assert ask(server.web_address)[0] == 200, "a short answer is not held up"
            unread.shutdown(socket.SHUT_RDWR)
        assert eventually(lambda: ask(server.web_address, "project_neuron", asked)[0] == 200)
