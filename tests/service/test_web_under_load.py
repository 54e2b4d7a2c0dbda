"""Callers who send much, or nothing, or do not read: the others are answered all the same."""

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from google.protobuf import json_format
from neuron_attribution_server import web_connection
from service.browsing import ASKED, ask, connection, page, reasons, served
from service.fakes import FakeEngine
from service.scraping import Scrape
from service.servers import PATIENCE, eventually

REPEATED = 100


@pytest.fixture(scope="module")
def server():
    with served() as server:
        yield server


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
