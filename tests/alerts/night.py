"""A night with everything in it: a healthy server, others each with a fault of its own, and callers on all of them."""

import os
import signal
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from alerts.callers import PAUSE, calling
from alerts.documents import RULES
from alerts.prometheus import PATIENCE, Prometheus, running_prometheus
from alerts.troubles import TROUBLES
from service.certificates import DAY, Authority
from service.demo_server import serving
from service.scraping import free_address
from service.servers import attribution, listening_address, server_process, worker_processes

HEALTHY = "healthy"
NO_TARGETS = (None, "NeuronAttributionNoTargets")
_LEISURE = 1.0
"""Seconds between two calls of a caller on the healthy server, whose model is a real one."""
_LOADED = {name for name, trouble in TROUBLES.items() if trouble.loads}


@dataclass
class Night:
    """The servers by name, the Prometheus that watches them, and every alert that has been seen firing.

    When `calls` are closed nobody calls any more.
    """

    prometheus: Prometheus
    processes: dict
    metrics: dict
    logs: dict
    calls: ExitStack
    seen: set = field(default_factory=set)

    def until(self, holds):
        """Look at the alerts until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            self.seen |= self.prometheus.firing()
            assert time.monotonic() < deadline, f"seen so far: {sorted(self.seen, key=str)}"
            time.sleep(0.2)  # Prometheus scrapes and evaluates meanwhile

    def until_query(self, query, holds=bool):
        """Look until what a query gives, its samples, is as it should be."""
        self.until(lambda: holds(self.prometheus.query(query)))

    def kill_worker(self, name):
        """Kill the server's worker process, once it has one."""
        pid = self.processes[name].pid
        self.until(lambda: worker_processes(pid))
        with suppress(ProcessLookupError):
            os.kill(worker_processes(pid)[0], signal.SIGKILL)


@contextmanager
def long_night(folder):
    """All servers, called all the time, and a Prometheus that has scraped each of them."""
    authority = Authority(folder)
    pair = authority.issue("server", DAY)
    tokens = folder / "tokens"
    tokens.write_text("")
    files = {
        "certificate": {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)},
        "tokens": {"token_file": str(tokens)},
    }
    metrics = {name: free_address() for name in (HEALTHY, *TROUBLES)}
    logs = {name: folder / f"{name}.log" for name in TROUBLES}
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("LOADED_ONCE", str(folder / "loaded"))
        processes = {
            name: stack.enter_context(_server(trouble, logs[name], metrics_listen=metrics[name], **files.get(name, {})))
            for name, trouble in TROUBLES.items()
        }
        addresses = {name: listening_address(process) for name, process in processes.items()}
        addresses[HEALTHY], _ = stack.enter_context(serving("--metrics-listen", metrics[HEALTHY]))
        for name in _LOADED:
            assert processes[name].stdout.readline().startswith("ready: "), f"{name}: {logs[name].read_text()}"
        tokens.write_text("a line without a hash")
        prometheus = stack.enter_context(running_prometheus(folder, RULES, metrics))
        calls = stack.enter_context(ExitStack())
        calls.enter_context(calling(_lines(addresses, authority.certificate.read_bytes())))
        night = Night(prometheus, processes, metrics, logs, calls)
        night.until_query("neuron_attribution_ready == 1", lambda samples: len(samples) == len(_LOADED) + 1)
        night.until(lambda: NO_TARGETS not in night.prometheus.firing())  # as there were none before the first scrape
        night.seen.clear()
        yield night


@contextmanager
def _server(trouble, log, **settings):
    module, _, factory = trouble.engine.partition(".")
    settings = {"cache_bytes": 0, **trouble.settings, **settings}
    with log.open("w") as errors, server_process(factory, module=module, errors=errors, **settings) as process:
        yield process


def _lines(addresses, root):
    """Who calls: two on the healthy server, and those that each fault needs."""
    yield addresses[HEALTHY], None, (attribution(),), 2, _LEISURE
    for name, trouble in TROUBLES.items():
        yield addresses[name], root if name == "certificate" else None, trouble.requests, trouble.callers, PAUSE
