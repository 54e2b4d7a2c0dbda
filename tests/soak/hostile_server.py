"""A server process on the demo model with everything that callers can reach: TLS, tokens, web page, metrics, health."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import ssl
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from neuron_attribution import Client
from service.certificates import Authority
from service.demo_server import COMMAND
from service.scraping import Scrape, free_address
from service.servers import worker_processes

from soak.processes import resident_bytes

GRACE = 20.0
PATIENCE = 300
ORDINARY, HOSTILE, REVOKED = "ordinary", "hostile", "revoked"
"""Tenants, whose tokens are their names and a few letters."""
SETTINGS = {
    "grace": GRACE,
    "restarts": 100,
    "spare_worker": "true",
    "cache_bytes": 0,
    "log_level": "warning",
}


class HostileServer:
    """The process, its addresses and its files. As a context manager it is ready, and ends at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = Authority(folder)
        self.pair = self.authority.issue("server")
        self.tokens = folder / "tokens"
        self.write_tokens(ORDINARY, HOSTILE, REVOKED)
        self.metrics, self.health, self.web = free_address(), free_address(), free_address()
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> HostileServer:
        settings = SETTINGS | {
            "tls_certificate": self.pair.certificate,
            "tls_key": self.pair.key,
            "token_file": self.tokens,
            "metrics_listen": self.metrics,
            "health_listen": self.health,
            "web": self.web,
        }
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = [COMMAND, "serve", "--model", "demo", "--listen", "localhost:0", *options]
        self._log = (self._folder / "log").open("w")
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the server, too, would ignore it
        environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment)
        os.nice(10)  # a server has its processors to itself; whoever calls has others
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().removeprefix("listening on ").strip()
        ready = self._process.stdout.readline()
        assert ready.startswith("ready"), ready
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        """The front end's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """The exit status, if it has ended."""
        assert self._process is not None
        return self._process.poll()

    @property
    def context(self) -> ssl.SSLContext:
        """For peers that speak HTTP/2 by themselves."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.set_alpn_protocols(["h2"])
        return context

    def client(self, tenant: str, timeout: float = PATIENCE) -> Client:
        """A client with a tenant's token."""
        return Client(
            self.address, timeout=timeout, root_certificates=self.authority.certificate, token=token_of(tenant)
        )

    def write_tokens(self, *tenants: str) -> None:
        """Let in these tenants and no others."""
        lines = [f"{tenant} {hashlib.sha256(token_of(tenant).encode()).hexdigest()}\n" for tenant in tenants]
        fresh = self.tokens.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self.tokens)

    def statuses(self) -> Counter[str]:
        """How many calls have ended with each status."""
        counts: Counter[str] = Counter()
        for (name, *labels), value in Scrape(self.metrics).series.items():
            if name == "grpc_server_handled_total" and value:
                counts[dict(labels)["grpc_code"]] += int(value)
        return counts

    def kill_worker(self) -> None:
        """End the worker's process, the largest one, as the system does when memory runs out; if there is one now."""
        if workers := worker_processes(self.pid):
            os.kill(max(workers, key=resident_bytes), signal.SIGKILL)

    @contextmanager
    def limited(self, kind: int, limit: int):
        """While a resource of the front end is limited."""
        soft, hard = resource.prlimit(self.pid, kind)
        resource.prlimit(self.pid, kind, (limit, hard))
        try:
            yield
        finally:
            resource.prlimit(self.pid, kind, (soft, hard))

    def hang_up(self) -> tuple[float, int]:
        """Send SIGHUP; the seconds to the end, and the exit status."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGHUP)
        try:
            code = self._process.wait(GRACE + 60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # its threads tell where they are
            code = self._process.wait(PATIENCE)
            print(self.log[-20_000:])
        return time.monotonic() - began, code

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self._folder / "log").read_text()


def token_of(tenant: str) -> str:
    """A tenant's token."""
    return f"{tenant}-token-of-the-soak"
