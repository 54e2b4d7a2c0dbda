"""TLS and mutual TLS: who may connect, what the others are told, and certificates that are replaced meanwhile."""

import asyncio
import datetime
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2
from neuron_attribution import AsyncClient, Client, UnavailableError
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.settings.config import ServerConfig
from service.certificates import Authority, encrypted_key, serial_number, served_serial_number
from service.fakes import FakeEngine
from service.servers import PATIENCE, RunningServer, eventually, failure, running_server

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("hasty")]
SERVING = health_pb2.HealthCheckResponse.SERVING
EXPIRED = -datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def stranger(folder):
    """An authority nobody here trusts."""
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def alice(authority):
    """A client's certificate."""
    return authority.issue("alice")


def tls(pair, authority=None, **settings):
    """Settings of a server with TLS; with an authority, mutual TLS."""
    settings |= {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    return settings | ({} if authority is None else {"tls_client_authority": str(authority.certificate)})


@contextmanager
def serving(settings):
    with running_server(ThreadWorker(FakeEngine()), **settings) as server:
        assert server.loaded.wait(PATIENCE)
        yield server


@pytest.fixture(scope="module")
def one_sided(authority):
    """A server with TLS."""
    with serving(tls(authority.issue("one-sided"))) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(authority):
    """A server that wants client certificates; its health port does not."""
    settings = tls(authority.issue("mutual"), authority, health_listen="localhost:0")
    with serving(settings) as server:
        yield server


def identity(pair):
    return {"certificate": pair.certificate, "key": pair.key}


def ask(address, **settings):
    """What both clients say: the model's name, or the reason and the message they fail with."""

    def synchronously():
        with Client(address, timeout=PATIENCE, **settings) as client:
            return outcome(lambda: client.get_model().model.name)

    async def both():
        async with AsyncClient(address, timeout=PATIENCE, **settings) as client:
            return await asyncio.gather(asyncio.to_thread(synchronously), asynchronous_outcome(client.get_model()))

    one, other = asyncio.run(both())
    assert one == other
    return one


async def asynchronous_outcome(call):
    try:
        return (await call).model.name
    except UnavailableError as error:
        return error.reason, error.message


def outcome(call):
    try:
        return call()
    except UnavailableError as error:
        return error.reason, error.message


def command(address, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "neuron_attribution.cli.main", "model", "--address", address, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_the_right_authority_is_enough_for_tls(one_sided, authority):
    assert ask(one_sided.address, root_certificates=authority.certificate) == "fake"
    done = command(one_sided.address, "--tls-authority", str(authority.certificate))
    assert (done.returncode, done.stderr) == (0, "")


def test_mutual_tls_takes_a_known_client(mutual, authority, alice):
    assert ask(mutual.address, root_certificates=authority.certificate, **identity(alice)) == "fake"
    paths = {"AUTHORITY": authority.certificate, "CERTIFICATE": alice.certificate, "KEY": alice.key}
    done = command(mutual.address, **{f"NEURON_ATTRIBUTION_TLS_{name}": str(path) for name, path in paths.items()})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_of_another_authority_is_refused(one_sided, stranger):
    for settings in ({"root_certificates": stranger.certificate}, {"tls": True}):
        reason, message = ask(one_sided.address, **settings)
        assert reason == "CERTIFICATE_REFUSED"
        assert "unable to get local issuer certificate" in message
        assert "--tls-authority" in message


def test_a_refusal_on_the_command_line_is_one_line(one_sided, stranger):
    done = command(one_sided.address, "--tls-authority", str(stranger.certificate))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"the certificate of {one_sided.address} is refused: unable to get local issuer" in done.stderr


def test_an_expired_server_is_refused(authority):
    with serving(tls(authority.issue("expired-server", EXPIRED))) as server:
        reason, message = ask(server.address, root_certificates=authority.certificate)
    assert reason == "CERTIFICATE_REFUSED"
    assert "certificate has expired" in message


@pytest.mark.parametrize("who", ["nobody", "a stranger", "an expired client"])
def test_mutual_tls_refuses_other_clients(mutual, authority, stranger, who):
    if who == "nobody":
        settings = {}
    else:
        pair = stranger.issue("mallory") if who == "a stranger" else authority.issue("expired-client", EXPIRED)
        settings = identity(pair)
    reason, message = ask(mutual.address, root_certificates=authority.certificate, **settings)
    assert reason == "CONNECTION_CLOSED"
    assert "--tls-certificate" in message


def test_plain_text_and_tls_do_not_meet(one_sided, authority):
    reason, message = ask(one_sided.address)
    assert reason == "CONNECTION_CLOSED"
    assert "--tls" in message
    with serving({}) as plain:
        reason, message = ask(plain.address, root_certificates=authority.certificate)
    assert (reason, "does not speak TLS" in message) == ("NO_TLS", True)


def test_tokens_travel_over_tls(authority, tmp_path, caplog):
    tokens = tmp_path / "tokens"
    tokens.write_text("alice 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n")
    with serving(tls(authority.issue("with-tokens"), token_file=str(tokens))) as server:
        assert ask(server.address, root_certificates=authority.certificate, token="secret") == "fake"
    assert "without TLS" not in caplog.text


def test_the_health_port_serves_health_and_nothing_else(mutual):
    with grpc.insecure_channel(mutual.health_address) as channel:
        port = RunningServer(mutual.health_address, channel, mutual.loaded)
        assert [port.health(), port.health("")] == [SERVING, SERVING]
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        for call in (port.attribute, lambda: list(reflect(iter([b""]), timeout=PATIENCE))):
            assert failure(call)[1].code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_health_port_follows_the_model(authority, tmp_path):
    """With tokens that are asked for health, too; the port asks for none."""
    tokens = tmp_path / "tokens"
    tokens.write_text("")
    engine = FakeEngine()
    engine.loadable.clear()
    settings = tls(authority.issue("loading"), token_file=str(tokens), open_health=False, health_listen="localhost:0")
    with (
        running_server(ThreadWorker(engine), **settings) as server,
        engine,
        grpc.insecure_channel(server.health_address) as channel,
    ):
        port = RunningServer(server.health_address, channel, server.loaded)
        assert port.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        engine.loadable.set()
        assert server.loaded.wait(PATIENCE)
        assert port.health() == SERVING


def test_certificates_are_replaced_without_a_failing_call(authority):
    """Calls go on over an open channel; each replacement is served to new connections."""
    pair = authority.issue("replaced")
    calls, failures, ending = [], [], threading.Event()
    with serving(tls(pair)) as server, Client(server.address, root_certificates=authority.certificate) as client:

        def call_on_and_on():
            while not ending.is_set():
                answer = outcome(lambda: client.get_model().model.name)
                (calls if answer == "fake" else failures).append(answer)

        caller = threading.Thread(target=call_on_and_on)
        caller.start()
        try:
            for number in range(3):
                done = len(calls)
                fresh = authority.issue(f"fresh-{number}")
                pair.replace_by(fresh)
                assert served_serial_number(server.address) == serial_number(fresh.certificate.read_bytes())
                assert ask(server.address, root_certificates=authority.certificate) == "fake"
                assert eventually(lambda done=done: failures or len(calls) >= done + 10)
        finally:
            ending.set()
            caller.join()
    assert failures == []


def test_the_authority_of_clients_is_replaced_too(folder, authority, stranger, alice):
    clients = folder / "clients.pem"
    clients.write_bytes(authority.certificate.read_bytes())
    settings = tls(authority.issue("replaced-authority")) | {"tls_client_authority": str(clients)}
    mallory = stranger.issue("mallory-2")
    with serving(settings) as server:
        trusted = {"root_certificates": authority.certificate}
        assert ask(server.address, **trusted, **identity(alice)) == "fake"
        clients.write_bytes(stranger.certificate.read_bytes())
        assert ask(server.address, **trusted, **identity(mallory)) == "fake"
        assert ask(server.address, **trusted, **identity(alice))[0] == "CONNECTION_CLOSED"


def test_broken_new_files_are_logged_and_the_old_certificate_stays(authority, caplog):
    pair = authority.issue("broken")
    before = serial_number(pair.certificate.read_bytes())
    with serving(tls(pair)) as server, caplog.at_level(logging.ERROR):
        pair.certificate.write_bytes(authority.issue("of-another-key").certificate.read_bytes())
        for _ in range(2):
            assert served_serial_number(server.address) == before
        assert caplog.text.count("does not belong to the tls_certificate") == 1
        pair.key.unlink()
        assert served_serial_number(server.address) == before
        assert "tls_key: cannot read" in caplog.text
        fresh = authority.issue("whole-again")
        pair.replace_by(fresh)
        assert served_serial_number(server.address) == serial_number(fresh.certificate.read_bytes())


def test_the_log_holds_no_key(authority, alice, caplog):
    caplog.set_level(logging.DEBUG)
    Application(ServerConfig(model="fake", **tls(alice)), ThreadWorker(FakeEngine()))
    with serving(tls(alice)):
        pass
    [configuration] = [record.fields for record in caplog.records if record.getMessage() == "configuration"]
    assert configuration["tls_key"] == str(alice.key)
    secret = alice.key.read_text().splitlines()[1]
    assert "PRIVATE KEY" not in caplog.text
    assert secret not in caplog.text


def refused_start(**files):
    """What `serve` says and its exit status."""
    flags = [word for name, path in files.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    done = subprocess.run(
        [sys.executable, "-m", "neuron_attribution.cli.main", "serve", "--model", "none", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def test_a_start_with_unusable_files_is_refused_in_one_line(authority, alice, folder):
    encrypted = folder / "encrypted.pem"
    subject = authority.issue("encrypted-subject")
    encrypted.write_bytes(encrypted_key(subject))
    fifo = folder / "fifo.pem"
    os.mkfifo(fifo)
    cases = [
        ({"tls_certificate": folder / "none.pem", "tls_key": alice.key}, "tls_certificate: cannot read"),
        ({"tls_certificate": alice.certificate, "tls_key": fifo}, f"tls_key: cannot read {fifo}: it is a FIFO"),
        (
            {"tls_certificate": authority.certificate, "tls_key": alice.key},
            f"the tls_key {alice.key} does not belong to the tls_certificate {authority.certificate}",
        ),
        ({"tls_certificate": alice.key, "tls_key": alice.key}, "are no PEM certificate"),
        ({"tls_certificate": subject.certificate, "tls_key": encrypted}, "unencrypted key"),
        (
            {"tls_certificate": alice.certificate, "tls_key": alice.key, "tls_client_authority": alice.key},
            "tls_client_authority: ",
        ),
    ]
    for files, message in cases:
        assert message in refused_start(**files)
