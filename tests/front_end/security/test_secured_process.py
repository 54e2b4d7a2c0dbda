"""A real server process with mutual TLS and tokens: who is let in, while files are replaced under it."""

import datetime

import pytest
from neuron_attribution import Client, UnauthenticatedError, UnavailableError
from service.certificates import Authority
from service.servers import PATIENCE, eventually, listening_address, server_process
from service.token_lines import line

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("hasty")]
ALICE, BOB = "alices-token", "bobs-token"
EXPIRED = -datetime.timedelta(hours=1)


class Secured:
    """The server's address, its files, and those of its clients."""

    def __init__(self, folder):
        self.authority = Authority(folder)
        self.pair = self.authority.issue("server")
        self.client = self.authority.issue("client")
        self.tokens = folder / "tokens"
        self.tokens.write_text(line("alice", ALICE) + line("bob", BOB))
        self.settings = {
            "tls_certificate": str(self.pair.certificate),
            "tls_key": str(self.pair.key),
            "tls_client_authority": str(self.authority.certificate),
            "token_file": str(self.tokens),
        }
        self.address = ""

    def connect(self, root=None, pair=None, token=ALICE):
        """A client, by default one that is let in."""
        root, pair = root or self.authority.certificate, pair or self.client
        return Client(
            self.address,
            timeout=PATIENCE,
            root_certificates=root,
            certificate=pair.certificate,
            key=pair.key,
            token=token,
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    files = Secured(tmp_path_factory.mktemp("secured"))
    with server_process(**files.settings) as process:
        files.address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        yield files


def test_who_has_a_certificate_and_a_token_is_let_in(secured):
    with secured.connect() as client:
        assert client.get_model().model.name == "fake"


def test_certificates_that_do_not_hold_are_refused(secured, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    with secured.connect(root=stranger.certificate) as client, pytest.raises(UnavailableError):
        client.get_model()
    for pair in (stranger.issue("mallory"), secured.authority.issue("expired", EXPIRED)):
        with secured.connect(pair=pair) as client, pytest.raises(UnavailableError):
            client.get_model()
    bare = Client(secured.address, timeout=PATIENCE, root_certificates=secured.authority.certificate, token=ALICE)
    with bare, pytest.raises(UnavailableError):
        bare.get_model()


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_a_right_token_calls_are_refused(secured, token):
    with secured.connect(token=token) as client, pytest.raises(UnauthenticatedError):
        client.get_model()


def test_files_are_replaced_while_connections_stay(secured):
    """The old connection goes on under a new certificate, a new one is accepted, and a revoked token is not."""
    with secured.connect() as alice, secured.connect(token=BOB) as bob:
        alice.get_model()
        bob.get_model()
        secured.pair.replace_by(secured.authority.issue("fresh"))
        with secured.connect() as later:
            later.get_model()
        alice.get_model()
        secured.tokens.write_text(line("alice", ALICE))
        assert eventually(lambda: is_refused(bob))
        alice.get_model()


def is_refused(client):
    try:
        client.get_model()
    except UnauthenticatedError:
        return True
    return False
