"""Servers on a real port: in a thread of the test, or in a process of their own."""

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.services import SERVICE
from neuron_attribution_server.settings.config import ServerConfig
from service.fakes import PROMPT, FakeEngine

PATIENCE = 30


@dataclass
class RunningServer:
    """A server, a channel to it, and the stub on the channel."""

    address: str
    channel: grpc.Channel
    loaded: threading.Event
    health_address: str = ""
    metrics_address: str = ""
    web_address: str = ""

    @property
    def stub(self):
        return services.NeuronAttributionServiceStub(self.channel)

    def attribute(self, request=None, **options):
        return self.stub.Attribute(request or attribution(), timeout=PATIENCE, **options)

    def health(self, service=SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=PATIENCE).status


def attribution(text=PROMPT, **fields):
    return messages.AttributeRequest(prompt=messages.Prompt(text=text), **fields)


def failure(call):
    """The error a call fails with, and its status code."""
    try:
        call()
    except grpc.RpcError as error:
        return from_rpc_error(error, "the server"), error
    raise AssertionError("the call did not fail")


def eventually(true):
    """Wait until `true()` holds: for what the server does in its own time. Fails where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "this never came to hold"
        time.sleep(0.02)
    return True


@contextmanager
def running_server(worker, **settings):
    """A server in a thread; the model is loaded when the engine lets it be."""
    config = ServerConfig(model="fake", listen="localhost:0", grace=5.0, **settings)
    life = _Life(Application(config, worker))
    thread = threading.Thread(target=lambda: asyncio.run(life.live()))
    thread.start()
    assert life.listening.wait(PATIENCE)
    try:
        ports = life.application.ports
        with grpc.insecure_channel(ports.address) as channel:
            others = (ports.health_address, ports.metrics_address, ports.web_address)
            yield RunningServer(ports.address, channel, life.loaded, *others)
    finally:
        life.loop.call_soon_threadsafe(life.ending.set)
        thread.join()


class _Life:
    def __init__(self, application):
        self.application = application
        self.listening = threading.Event()
        self.loaded = threading.Event()

    async def live(self):
        self.loop, self.ending = asyncio.get_running_loop(), asyncio.Event()
        await self.application.start()
        self.listening.set()
        load = asyncio.create_task(self.application.load())
        load.add_done_callback(lambda _: self.loaded.set())
        await self.ending.wait()
        await self.application.stop()
        await load


_LOGGING = """
from neuron_attribution_server.front_end.calls.calls import call_ids
from neuron_attribution_server.settings.logs import configure_logging
configure_logging(config.log_level, config.log_format, call_ids)
"""


@contextmanager
def server_process(factory="make_engine", *, module="fakes", workers=1, errors=subprocess.PIPE, before="", **settings):
    """A server process with worker processes, whose engines a `factory` of a module beside this one makes.

    It logs where a `log_format` is given, and runs the lines `before` it starts.
    """
    settings = {"model": "fake", "listen": "localhost:0", "grace": 5.0, **settings}
    script = (
        f"import service.{module} as engines\n"
        "from neuron_attribution_server.app import Application\n"
        "from neuron_attribution_server.settings.config import ServerConfig\n"
        "from neuron_attribution_server.server_process import serve\n"
        "from neuron_attribution_server.front_end.workers.pool import worker_pool\n"
        f"config = ServerConfig(**{settings!r})\n"
        f"{_LOGGING if 'log_format' in settings else ''}"
        f"{before}\n"
        f"pool = worker_pool(config, [engines.{factory}] * {workers})\n"
        "raise SystemExit(serve(Application(config, pool)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def worker_processes(pid):
    """The process's children that run Python's spawn, by id."""
    ids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(id) for id in ids if b"spawn_main" in Path(f"/proc/{id}/cmdline").read_bytes()]


def listening_address(process):
    """The address a server process says it listens on."""
    return process.stdout.readline().removeprefix("listening on ").strip()


def prompt(*ids):
    """A request for the attribution of such a prompt."""
    return messages.AttributeRequest(prompt=messages.Prompt(token_ids=messages.TokenIds(ids=ids)))


def with_stub(address, scenario):
    """Run `scenario(stub)` on an event loop; the channel sends nothing again by itself."""

    async def run():
        async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
            return await scenario(services.NeuronAttributionServiceStub(channel))

    return asyncio.run(asyncio.wait_for(run(), PATIENCE))


@contextmanager
def measured(engine=None, **settings):
    """A ready server that serves its metrics."""
    engine = engine or FakeEngine()
    with running_server(ThreadWorker(engine), metrics_listen="localhost:0", **settings) as server, engine:
        assert server.loaded.wait(PATIENCE)
        engine.batches.clear()
        yield server
