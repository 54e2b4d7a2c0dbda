"""Bearer tokens: the file that names them, who gets in with one, and what the others are told."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from neuron_attribution import AsyncClient, Client, UnauthenticatedError
from neuron_attribution.transport.status import DETAILS_KEY
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.calls.tenants import ANONYMOUS, current_tenant
from neuron_attribution_server.front_end.security.authentication import token_file
from neuron_attribution_server.front_end.security.tokens import TokenLineError, parse_tokens
from neuron_attribution_server.front_end.service.servicer import AttributionServicer
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig
from service.fakes import FakeEngine
from service.servers import PATIENCE, eventually, failure, running_server
from service.token_lines import digest, line

pytestmark = pytest.mark.process

ALICE, BOB = "alices-token", "bobs-token"
SERVING = health_pb2.HealthCheckResponse.SERVING


def bearer(token, scheme="Bearer"):
    return (("authorization", f"{scheme} {token}"),)


@pytest.fixture
def tokens(tmp_path):
    """The token file of two tenants."""
    file = tmp_path / "tokens"
    file.write_text("# who may call\n\n" + line("alice", ALICE) + line("bob", BOB))
    return file


@contextmanager
def serving(tokens, **settings):
    with running_server(ThreadWorker(FakeEngine()), token_file=str(tokens), **settings) as server:
        assert server.loaded.wait(PATIENCE)
        yield server


def test_tokens_belong_to_tenants():
    table = parse_tokens(
        f"# comment\n\n  alice\t{digest(ALICE).upper()}  \n{line('alice', 'new')}{line('b-2.c_d', BOB)}"
    )
    assert [table.tenant_of(token) for token in (ALICE, "new", BOB)] == ["alice", "alice", "b-2.c_d"]
    assert [table.tenant_of(token) for token in ("", ALICE[:-1], digest(ALICE), "\udcff")] == [None] * 4
    assert digest(ALICE) not in repr(table)


@pytest.mark.parametrize(
    "bad", ["alice", f"alice {digest(ALICE)[1:]}", f"a/b {digest(ALICE)}", digest(ALICE), f"alice {digest(ALICE)}  -"]
)
def test_a_bad_line_is_named_by_its_number_only(bad):
    with pytest.raises(TokenLineError) as refused:
        parse_tokens(f"# one\n{line('bob', BOB)}{bad}\n")
    assert "line 3 is not TENANT SHA256HEX" in str(refused.value)
    assert bad not in str(refused.value), "it may be a token"


def test_marks_and_line_ends_of_other_systems_do_not_matter(tmp_path):
    """A byte-order mark comes with every file that Windows' editors write, and stays in it when files are joined."""
    path = tmp_path / "tokens"
    path.write_bytes(b"\xef\xbb\xbf" + line("alice", ALICE).replace("\n", "\r\n").encode() + b"\r\n")
    with path.open("ab") as file:
        file.write(b"\xef\xbb\xbf" + line("bob", BOB).encode())
    table = token_file(str(path)).value
    assert [table.tenant_of(token) for token in (ALICE, BOB)] == ["alice", "bob"]


def test_one_token_of_two_tenants_is_refused():
    with pytest.raises(TokenLineError, match="line 2: this token stands in an earlier line"):
        parse_tokens(line("alice", ALICE) + line("bob", ALICE))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not a text file in UTF-8"),
        (line("alice", ALICE).encode("utf-16"), "is UTF-16 or has NUL bytes: save it as UTF-8"),
        (line("alice", ALICE).encode("utf-16-be"), "is UTF-16 or has NUL bytes"),
        (line("alice", ALICE).encode() + b"\0", "is UTF-16 or has NUL bytes"),
        (b"#" * (2**20 + 1), "is larger than 1,048,576 bytes"),
        (b"secret-token\n", "line 1 is not TENANT SHA256HEX"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path, content, message):
    path = tmp_path / "tokens"
    path.write_bytes(content)
    refuses_to_start(path, message)


def make_nothing(path):
    """Leave it missing."""


def make_dangling(path):
    path.symlink_to(path.with_name("nowhere"))


def make_looping(path):
    path.symlink_to(path)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_nothing, "No such file"),
        (make_dangling, "No such file"),
        (make_looping, "Too many levels of symbolic links"),
        (os.mkdir, "it is a folder"),
        (os.mkfifo, "it is a FIFO"),
        (make_socket, "it is a socket"),
        (make_device, "it is a device"),
    ],
)
def test_what_is_no_regular_file_stops_the_start(tmp_path, make, message):
    """Nobody opens it: some would never let go of who does."""
    make(tmp_path / "tokens")
    refuses_to_start(tmp_path / "tokens", message)


def refuses_to_start(path, message):
    with pytest.raises(ConfigurationError) as refused:
        Application(ServerConfig(model="fake", token_file=str(path)), ThreadWorker(FakeEngine()))
    assert f"token_file: {path}" in str(refused.value).replace("cannot read ", "")
    assert message in str(refused.value)
    assert "secret-token" not in str(refused.value)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server with tokens, for the tests that change nothing."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    with serving(file) as server:
        yield server


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "TOKEN_MISSING"),
        (bearer(""), "TOKEN_MISSING"),
        (bearer(ALICE, scheme="Basic"), "TOKEN_MISSING"),
        (bearer("not-a-token"), "TOKEN_INVALID"),
        (bearer(digest(ALICE)), "TOKEN_INVALID"),
    ],
)
def test_a_call_without_a_valid_token_is_refused(shared, metadata, reason):
    error, status = failure(lambda: shared.attribute(metadata=metadata))
    assert status.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (type(error), error.reason) == (UnauthenticatedError, reason)
    trailers = dict(status.trailing_metadata())
    assert trailers["x-request-id"]
    info = ErrorInfo()
    assert Status.FromString(trailers[DETAILS_KEY]).details[0].Unpack(info)
    assert info.reason == reason


def test_the_refusal_names_the_remedy(shared):
    missing, _ = failure(shared.attribute)
    assert "authorization: Bearer TOKEN" in missing.message
    assert "NEURON_ATTRIBUTION_TOKEN" in missing.message


def test_streams_and_unknown_calls_are_refused_too(shared):
    for method in ("neuron_attribution.v1.NeuronAttributionService/AttributeStream", "some.Service/Call"):
        call = shared.channel.stream_stream(f"/{method}")
        _, status = failure(lambda call=call: list(call(iter(()), timeout=PATIENCE)))
        assert status.code() is grpc.StatusCode.UNAUTHENTICATED


def test_both_clients_send_their_token(shared):
    async def describe(token):
        async with AsyncClient(shared.address, token=token) as client:
            return await client.get_model()

    with Client(shared.address, token=ALICE) as client:
        assert client.get_model() == asyncio.run(describe(BOB))
    with Client(shared.address, token="wrong") as client, pytest.raises(UnauthenticatedError):
        client.get_model()
    with pytest.raises(UnauthenticatedError):
        asyncio.run(describe(None))


def test_the_command_line_takes_a_token_from_a_file_or_the_environment(shared, tmp_path):
    file = tmp_path / "token"
    file.write_text(ALICE + "\n")
    assert command(shared.address, "--token-file", str(file)).returncode == 0
    assert command(shared.address, NEURON_ATTRIBUTION_TOKEN=BOB).returncode == 0
    refused = command(shared.address, NEURON_ATTRIBUTION_TOKEN="wrong-token")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "not, or no longer, valid" in refused.stderr
    assert "wrong-token" not in refused.stderr


def command(address, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "neuron_attribution.cli.main", "model", "--address", address, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_the_handler_sees_the_tenant(tokens, monkeypatch):
    seen = []
    describe = AttributionServicer.GetModel

    async def spy(self, request, context):
        seen.append(current_tenant.get())
        return await describe(self, request, context)

    monkeypatch.setattr(AttributionServicer, "GetModel", spy)
    with serving(tokens) as server:
        for token in (ALICE, BOB, ALICE):
            with Client(server.address, token=token) as client:
                client.get_model()
    with running_server(ThreadWorker(FakeEngine())) as server, Client(server.address) as client:
        assert server.loaded.wait(PATIENCE)
        client.get_model()
    assert seen == ["alice", "bob", "alice", ANONYMOUS]


def test_a_streams_handler_sees_the_tenant(tokens, monkeypatch):
    seen = []

    async def spy(self, requests, context):
        async for _ in requests:
            seen.append(current_tenant.get())

    monkeypatch.setattr(AttributionServicer, "AttributeStream", spy)
    with serving(tokens) as server:
        call = server.channel.stream_stream("/neuron_attribution.v1.NeuronAttributionService/AttributeStream")
        assert list(call(iter([b""]), metadata=bearer(BOB), timeout=PATIENCE)) == []
    assert seen == ["bob"]


def test_a_revoked_token_is_refused_and_a_new_one_accepted_while_the_server_runs(tokens):
    with (
        serving(tokens) as server,
        Client(server.address, token=ALICE) as alice,
        Client(server.address, token="new") as new,
    ):
        alice.get_model()
        tokens.write_text(line("alice", "new"))
        assert eventually(lambda: is_refused(alice))
        new.get_model()


def test_a_bad_new_file_is_logged_and_the_old_tokens_stay(tokens, caplog):
    with serving(tokens) as server, Client(server.address, token=ALICE) as alice, caplog.at_level(logging.ERROR):
        tokens.write_text(line("bob", BOB) + "alice unhashed-secret\n")

        def logged():
            alice.get_model()
            return "line 2 is not TENANT SHA256HEX" in caplog.text

        assert eventually(logged)
        assert "stays in use" in caplog.text
        assert "unhashed-secret" not in caplog.text
        tokens.unlink()
        assert eventually(lambda: alice.get_model() and "cannot read" in caplog.text)
        tokens.write_text(line("bob", BOB))
        assert eventually(lambda: is_refused(alice))


def is_refused(client):
    try:
        client.get_model()
    except UnauthenticatedError:
        return True
    return False


def listed_services(server, metadata=()):
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [response] = stub.ServerReflectionInfo(iter([request]), metadata=metadata, timeout=PATIENCE)
    return response.list_services_response.service


def test_health_is_open_and_reflection_closed(shared):
    assert shared.health() == SERVING
    error, status = failure(lambda: listed_services(shared))
    assert (status.code(), error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert listed_services(shared, bearer(ALICE))


def test_health_can_be_closed_and_reflection_opened(tokens):
    with serving(tokens, open_health=False, open_reflection=True) as server:
        error, _ = failure(server.health)
        assert error.reason == "TOKEN_MISSING"
        assert listed_services(server)


def test_reflection_can_be_left_out():
    with running_server(ThreadWorker(FakeEngine()), reflection=False) as server:
        _, status = failure(lambda: listed_services(server))
        assert status.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_log_warns_of_plain_text_once_and_holds_no_token(tokens, caplog):
    with caplog.at_level(logging.DEBUG), serving(tokens) as server, Client(server.address, token=ALICE) as client:
        client.get_model()
        client.get_model()
    assert caplog.text.count("tokens are asked for without TLS") == 1
    [configuration] = [record.fields for record in caplog.records if record.getMessage() == "configuration"]
    assert configuration["token_file"] == str(tokens)
    assert not any(secret in caplog.text for secret in (ALICE, BOB, digest(ALICE), digest(BOB)))
