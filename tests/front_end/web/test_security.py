"""Who may ask the web page: tokens, certificates, and names."""

import hashlib
import socket
import ssl
from contextlib import suppress

import pytest
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.browsing import ask, reasons, served
from service.certificates import Authority, serial_number
from service.fakes import FakeEngine
from service.servers import PATIENCE, running_server

TOKEN = "alices-token"


@pytest.fixture(scope="module")
def server():
    with served() as server:
        yield server


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
