"""A real server process whose token file and certificate cannot be read for a while: nothing of that is for good."""

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psutil
import pytest
from neuron_attribution import Client, UnauthenticatedError
from service.certificates import Authority, serial_number, served_serial_number
from service.scraping import Scrape, free_address
from service.servers import PATIENCE, eventually, listening_address, server_process
from service.token_lines import line

pytestmark = pytest.mark.process

ALICE, BOB = "alices-token", "bobs-token"
NO_DESCRIPTOR = "Too many open files"
STANDARD = 3
"""The descriptors of standard input, output and error."""
LOOKS = 2.5
"""Seconds in which the token file is looked at more than once."""


class Served:
    """A server with TLS and tokens: its process, its files and its log."""

    def __init__(self, folder):
        self._log = folder / "log"
        self.authority = Authority(folder)
        self.pair = self.authority.issue("server")
        self.tokens = folder / "tokens"
        self.metrics, self.web = free_address(), free_address()
        self.settings = {
            "tls_certificate": str(self.pair.certificate),
            "tls_key": str(self.pair.key),
            "token_file": str(self.tokens),
            "metrics_listen": self.metrics,
            "web": self.web,
            "log_format": "text",
            "log_level": "warning",
        }
        self.address, self.pid = "", 0

    @contextmanager
    def running(self):
        self.allow(ALICE, BOB)
        with self._log.open("w") as errors, server_process(errors=errors, **self.settings) as process:
            self.address, self.pid = listening_address(process), process.pid
            assert process.stdout.readline().startswith("ready: ")
            yield self

    def allow(self, *tokens):
        self.write_tokens("".join(line(f"tenant-{number}", token) for number, token in enumerate(tokens)))

    def write_tokens(self, text):
        """Write the token file so that it is never seen half."""
        fresh = self.tokens.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.tokens)

    def connect(self, token):
        return Client(self.address, timeout=PATIENCE, root_certificates=self.authority.certificate, token=token)

    def client(self, token):
        """A client that has called already."""
        client = self.connect(token)
        client.get_model()
        return client

    def log_since(self, start):
        return self._log.read_text()[start:]

    @property
    def log_end(self):
        return self._log.stat().st_size

    def failing(self, files):
        return Scrape(self.metrics).value("reload_failing", files=files)

    def spare_descriptor(self):
        """The number that the next descriptor gets, once nobody is connected."""
        assert eventually(lambda: not [each for each in psutil.Process(self.pid).net_connections("tcp") if each.raddr])
        used = {int(name) for name in os.listdir(f"/proc/{self.pid}/fd")}
        return min(set(range(len(used) + 1)) - used)

    @contextmanager
    def descriptors_below(self, limit):
        """Let the server open nothing else, as when connections have used up all descriptors."""
        before = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("reloading")).running() as served:
        yield served


@pytest.fixture(autouse=True)
def whole_again(served, request):
    """Each test finds a server that has read a file with both tokens, and with one of its own."""
    served.allow(ALICE, BOB, request.node.name)
    with served.connect(request.node.name) as known:
        assert eventually(lambda: not is_refused(known))


def is_refused(client):
    try:
        client.get_model()
    except UnauthenticatedError:
        return True
    return False


def test_a_token_revoked_while_the_file_cannot_be_read_is_refused_as_soon_as_it_can(served):
    begin = served.log_end
    with served.client(ALICE) as alice, served.client(BOB) as bob:
        with served.descriptors_below(STANDARD):
            served.allow(ALICE)
            assert eventually(lambda: bob.get_model() and NO_DESCRIPTOR in served.log_since(begin))
        assert eventually(lambda: is_refused(bob))
        alice.get_model()
    log = served.log_since(begin)
    assert log.count(NO_DESCRIPTOR) == 1
    assert f"read again: {served.tokens}, after" in log


def test_a_token_revoked_in_a_file_that_keeps_its_size_and_time_is_refused(served):
    """As a copy that preserves times leaves it."""
    before = served.tokens.stat()
    with served.client(BOB) as bob:
        with served.tokens.open("r+") as file:
            file.write(line("tenant-0", ALICE) + line("tenant-1", "another"))
        os.utime(served.tokens, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert served.tokens.stat().st_size == before.st_size
        assert eventually(lambda: is_refused(bob))


def test_a_certificate_replaced_while_it_cannot_be_read_is_served_as_soon_as_it_can(served):
    """The one descriptor that is left is that of the connection."""
    begin, old = served.log_end, serial_number(served.pair.certificate.read_bytes())
    fresh = served.authority.issue("fresh")
    with served.descriptors_below(served.spare_descriptor() + 1):
        served.pair.replace_by(fresh)
        assert served_serial_number(served.address) == old
        assert NO_DESCRIPTOR in served.log_since(begin)
    assert served_serial_number(served.address) == serial_number(fresh.certificate.read_bytes())


def test_handshakes_at_once_survive_a_new_certificate(served):
    """gRPC frees a configuration that is replaced, whoever uses it: it must not be given the same one again."""
    fresh = served.authority.issue("for-many")
    served.pair.replace_by(fresh)
    end = time.monotonic() + LOOKS

    def shake_hands():
        numbers = set()
        while time.monotonic() < end:
            numbers.add(served_serial_number(served.address))
        return numbers

    with ThreadPoolExecutor(6) as callers:
        futures = [callers.submit(shake_hands) for _ in range(6)]
    assert {number for future in futures for number in future.result()} == {
        serial_number(fresh.certificate.read_bytes())
    }


def test_a_file_that_stays_unreadable_is_told_of_once_and_counted_as_failing_until_it_is_whole(served):
    begin = served.log_end
    with served.client(ALICE) as alice, served.client(BOB) as bob:
        served.write_tokens(f"{line('alice', ALICE)}no hash\n")
        assert eventually(lambda: served.failing("tokens") == 1)
        assert served.failing("certificate") == 0
        end = served.log_end
        call_on(alice)
        bob.get_model()
        assert served.log_since(end) == "", "the same failure is not logged again"
        served.tokens.unlink()
        assert eventually(lambda: alice.get_model() and "No such file" in served.log_since(end))
        served.allow(ALICE)
        assert eventually(lambda: served.failing("tokens") == 0)
        assert is_refused(bob)
    log = served.log_since(begin)
    assert [log.count(text) for text in ("line 2 is not TENANT", "No such file", "read again: ")] == [1, 1, 1]


def call_on(client):
    """Call for long enough to make the server look at its files again and again."""
    end = time.monotonic() + LOOKS
    while time.monotonic() < end:
        client.get_model()
        time.sleep(0.1)


@contextmanager
def replaced_by_fifo(path):
    """What waits for whoever opens it, in a file's place; in the end they are let go, and the file is put back."""
    kept, fifo = path.with_suffix(".kept"), path.with_suffix(".fifo")
    kept.write_bytes(path.read_bytes())
    os.mkfifo(fifo)
    fifo.replace(path)
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        kept.replace(path)


@pytest.mark.parametrize("files", ["tokens", "certificate"])
def test_a_fifo_in_a_files_place_holds_nobody_up(served, files):
    begin, path = served.log_end, served.tokens if files == "tokens" else served.pair.key
    with served.client(ALICE) as alice:
        with replaced_by_fifo(path):
            assert eventually(lambda: alice.get_model() and served.failing(files) == 1)
            assert f"cannot read {path}: it is a FIFO" in served.log_since(begin)
            served.client(BOB).close()
            assert served_serial_number(served.web)
        assert eventually(lambda: served.failing(files) == 0)
