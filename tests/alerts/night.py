"""A night with everything in it: a healthy server, others each with a fault of its own, and callers on all of them."""

import asyncio
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle

import grpc
from alerts.documents import RULES
from alerts.prometheus import PATIENCE, Prometheus, running_prometheus
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.certificates import DAY, Authority
from service.demo_server import serving
from service.faulty_engines import HUGE
from service.scraping import free_address
from service.servers import attribution, listening_address, server_process, worker_processes

HEALTHY = "healthy"
_PAUSE = 0.05
"""Seconds between two calls of one caller."""


@dataclass(frozen=True)
class Trouble:
    """A server that has a fault: its engine and settings, who calls it with what, and what must fire.

    `by_the_way` may fire as well, while the worker is away.
    """

    alerts: set
    engine: str = "fakes.make_engine"
    settings: dict = field(default_factory=dict)
    requests: tuple = (attribution(),)
    callers: int = 0
    by_the_way: set = frozenset()


def _too_large():
    return messages.AttributeRequest(prompt=messages.Prompt(token_ids=messages.TokenIds(ids=(HUGE,))))


_WORKER_AWAY = {"NeuronAttributionWorkerDown", "NeuronAttributionNotReady", "NeuronAttributionNoReplicaReady"}
TROUBLES = {
    "errors": Trouble(
        {"NeuronAttributionErrorBudgetBurnFast", "NeuronAttributionErrorBudgetBurnSlow"},
        requests=(attribution(), attribution(" crash")),
        callers=1,
    ),
    "slow": Trouble(
        {"NeuronAttributionLatencyBudgetBurnFast", "NeuronAttributionLatencyBudgetBurnSlow"},
        engine="alarming_engines.make_late_engine",
        callers=24,
    ),
    "memory": Trouble(
        {"NeuronAttributionOutOfMemorySplits", "NeuronAttributionOutOfMemoryFailures"},
        engine="faulty_engines.make_slow_small_engine",
        requests=(*[attribution()] * 4, _too_large()),
        callers=8,
    ),
    "overload": Trouble(
        {"NeuronAttributionRefusingCalls", "NeuronAttributionQueueSaturated"},
        engine="fakes.make_timed_engine",
        settings={"queued_requests": 8, "batch_requests": 1},
        callers=24,
    ),
    "certificate": Trouble(
        {
            "NeuronAttributionCertificateExpiresSoon",
            "NeuronAttributionCertificateExpiryCritical",
            "NeuronAttributionInexactRankings",
        },
        engine="alarming_engines.make_inexact_engine",
        callers=1,
    ),
    "reload": Trouble(
        {"NeuronAttributionWorkerRestarted", *_WORKER_AWAY},
        engine="alarming_engines.make_engine_once",
    ),
    "restarts": Trouble(
        {
            "NeuronAttributionWorkerRestarted",
            "NeuronAttributionWorkerCrashLoop",
            "NeuronAttributionTargetDown",
        },
        settings={"restarts": 3},
        by_the_way=_WORKER_AWAY,
    ),
}


@dataclass
class Night:
    """The servers by name, the Prometheus that watches them, and every alert that has been seen firing."""

    prometheus: Prometheus
    processes: dict
    metrics: dict
    seen: set = field(default_factory=set)

    def until(self, holds):
        """Look at the alerts until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            self.seen |= self.prometheus.firing()
            assert time.monotonic() < deadline, f"seen so far: {sorted(self.seen, key=str)}"
            time.sleep(0.2)  # Prometheus scrapes and evaluates meanwhile

    def kill_worker(self, name):
        """Kill the server's worker process, once it has one."""
        pid = self.processes[name].pid
        self.until(lambda: worker_processes(pid))
        with suppress(ProcessLookupError):
            os.kill(worker_processes(pid)[0], signal.SIGKILL)


@contextmanager
def long_night(folder):
    """All servers, called all the time, and a Prometheus that has scraped each of them."""
    os.environ["LOADED_ONCE"] = str(folder / "loaded")
    authority = Authority(folder)
    pair = authority.issue("server", DAY)
    tls = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    metrics = {name: free_address() for name in (HEALTHY, *TROUBLES)}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(_server(trouble, metrics[name], tls if name == "certificate" else {}))
            for name, trouble in TROUBLES.items()
        }
        addresses = {name: listening_address(process) for name, process in processes.items()}
        addresses[HEALTHY], _ = stack.enter_context(serving("--metrics-listen", metrics[HEALTHY]))
        for process in processes.values():
            assert process.stdout.readline().startswith("ready: ")
        night = Night(stack.enter_context(running_prometheus(folder, RULES, metrics)), processes, metrics)
        stack.enter_context(_callers(addresses, authority.certificate.read_bytes()))
        night.until(lambda: len(night.prometheus.query("neuron_attribution_ready == 1")) == len(metrics))
        night.seen.clear()  # before the first scrape there are no targets
        yield night


def _server(trouble, metrics, tls):
    module, _, factory = trouble.engine.partition(".")
    settings = {"cache_bytes": 0, "log_level": "error", **trouble.settings, **tls}
    return server_process(factory, module=module, errors=None, metrics_listen=metrics, **settings)


@contextmanager
def _callers(addresses, root):
    """Callers on every server, in a thread."""
    calling = {HEALTHY: Trouble(set(), callers=2), **TROUBLES}

    async def call_all():
        ending = asyncio.Event()
        loop.append((asyncio.get_running_loop(), ending))
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_call_on(addresses[name], trouble, root if name == "certificate" else None))
                for name, trouble in calling.items()
            ]
            started.set()
            await ending.wait()
            for task in tasks:
                task.cancel()

    loop, started = [], threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(call_all()))
    thread.start()
    started.wait()
    try:
        yield
    finally:
        [(running, ending)] = loop
        running.call_soon_threadsafe(ending.set)
        thread.join()


async def _call_on(address, trouble, root):
    """The callers of one server; what it answers does not matter."""
    options = [("grpc.enable_retries", 0)]
    if root is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root), options)

    async def call():
        while True:
            with suppress(grpc.aio.AioRpcError):
                await stub.Attribute(next(requests), timeout=PATIENCE)
            await asyncio.sleep(_PAUSE)

    async with channel, asyncio.TaskGroup() as group:
        stub, requests = services.NeuronAttributionServiceStub(channel), cycle(trouble.requests)
        for _ in range(trouble.callers):
            group.create_task(call())
