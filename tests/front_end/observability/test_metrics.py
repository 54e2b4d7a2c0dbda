"""Metrics as a Prometheus would fetch them from a real server, while calls are made to it."""

import ast
import asyncio
import hashlib
import re
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import grpc
import neuron_attribution_server
import psutil
import pytest
from neuron_attribution import convert
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import ProjectNeuronRequest
from neuron_attribution.results import Coverage, NeuronRanking
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.observability.metrics import OTHER, REASONS, Metrics
from neuron_attribution_server.front_end.observability.rpc_metrics import RpcMetrics
from neuron_attribution_server.front_end.workers.interface import DeviceState
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.live_metrics import LiveMetrics
from neuron_attribution_server.services import SERVICE, SERVICES
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.answers import AttributeOutcome
from neuron_attribution_server.tasks.reports import GpuMemory
from service.certificates import DAY, Authority
from service.fakes import FakeEngine
from service.faulty_engines import HUGE, SmallEngine
from service.scraping import PREFIX, Scrape, Watched, free_address
from service.servers import (
    PATIENCE,
    RunningServer,
    attribution,
    eventually,
    failure,
    listening_address,
    measured,
    prompt,
    running_server,
    server_process,
    worker_processes,
)

pytestmark = pytest.mark.process

RPC = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Attribute"}
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "observability.md"
WORKER, PART = ["worker"], ["part"]
METHOD = ["grpc_type", "grpc_service", "grpc_method"]
CONTRACT = {
    "grpc_server_started": ("counter", METHOD),
    "grpc_server_handled": ("counter", [*METHOD, "grpc_code"]),
    "grpc_server_handling_seconds": ("histogram", METHOD),
    PREFIX + "queue_requests": ("gauge", []),
    PREFIX + "queue_tokens": ("gauge", []),
    PREFIX + "queue_capacity_requests": ("gauge", []),
    PREFIX + "queue_capacity_tokens": ("gauge", []),
    PREFIX + "queue_seconds": ("gauge", []),
    PREFIX + "queue_capacity_seconds": ("gauge", []),
    PREFIX + "queue_wait_seconds": ("histogram", []),
    PREFIX + "rejected": ("counter", ["reason"]),
    PREFIX + "batch_requests": ("histogram", []),
    PREFIX + "batch_tokens": ("histogram", []),
    PREFIX + "batch_padding_ratio": ("histogram", []),
    PREFIX + "stage_seconds": ("histogram", ["stage"]),
    PREFIX + "neurons": ("counter", ["part", "state"]),
    PREFIX + "explained_tokens": ("counter", []),
    PREFIX + "inexact_rankings": ("counter", PART),
    PREFIX + "worker_predicted_seconds": ("counter", []),
    PREFIX + "worker_seconds": ("counter", []),
    PREFIX + "worker_time_ratio": ("histogram", []),
    PREFIX + "batches_stopped": ("counter", []),
    PREFIX + "out_of_memory_splits": ("counter", []),
    PREFIX + "out_of_memory_failures": ("counter", []),
    PREFIX + "worker_up": ("gauge", WORKER),
    PREFIX + "worker_restarts": ("counter", WORKER),
    PREFIX + "worker_resident_memory_bytes": ("gauge", WORKER),
    PREFIX + "ranges_ready_ratio": ("gauge", WORKER),
    PREFIX + "gpu_memory_bytes": ("gauge", ["worker", "state"]),
    PREFIX + "unread_bytes": ("gauge", []),
    PREFIX + "unread_capacity_bytes": ("gauge", []),
    PREFIX + "unread_calls": ("counter", []),
    PREFIX + "held_request_bytes": ("gauge", []),
    PREFIX + "held_request_capacity_bytes": ("gauge", []),
    PREFIX + "cache_hits": ("counter", []),
    PREFIX + "cache_misses": ("counter", []),
    PREFIX + "cache_bytes": ("gauge", []),
    PREFIX + "cache_capacity_bytes": ("gauge", []),
    PREFIX + "ready": ("gauge", []),
    PREFIX + "draining": ("gauge", []),
    PREFIX + "model_info": ("gauge", ["model", "revision", "dtype", "family", "device"]),
    PREFIX + "build_info": ("gauge", ["version", "python", "grpcio", "torch"]),
    PREFIX + "certificate_expiry_timestamp_seconds": ("gauge", []),
    PREFIX + "reload_failing": ("gauge", ["files"]),
}
"""The names that dashboards, alerts and autoscaling rely on. The plain text format calls a counter without _total."""


@pytest.fixture
def everything(tmp_path):
    """A scrape of a server process in which as much as can be is to be seen."""
    pair = Authority(tmp_path).issue("server")
    address = free_address()
    files = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    with server_process(metrics_listen=address, **files) as process:
        listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        yield Scrape(address)


def test_the_names_types_and_labels_are_the_promised_ones(everything):
    families = {name: family for name, family in everything.families.items() if not name.startswith("process_")}
    hidden = {PREFIX + "gpu_memory_bytes"}
    assert families.keys() == CONTRACT.keys() - hidden
    for name, family in families.items():
        kind, labels = CONTRACT[name]
        assert family.type == kind, name
        seen = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert seen == {frozenset(labels)}, name
    assert everything.value("process_start_time_seconds") > 0


def test_the_documentation_lists_every_metric_as_it_is():
    metrics = Metrics()
    RpcMetrics(metrics.registry, SERVICES)
    live = LiveMetrics(ServerConfig(model="fake"), ThreadWorker(FakeEngine()), {}, None, {})
    helps = {family.name: family.documentation for family in (*metrics.registry.collect(), *live.describe())}
    rows = [_row(name, kind, labels, helps) for name, (kind, labels) in CONTRACT.items()]
    documented = [
        line for line in DOCUMENTATION.read_text().splitlines() if re.search(r" \| (counter|gauge|hist\w+) \| ", line)
    ]
    assert documented == rows


def _row(name, kind, labels, helps):
    shown = f"{name}_total" if kind == "counter" else name
    text = helps[name.removesuffix("_info") if name.endswith("_info") else name]
    return f"| `{shown}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |"


def test_the_documentation_lists_every_reason():
    text = DOCUMENTATION.read_text()
    assert [reason for reason in (*REASONS, OTHER) if f"`{reason}`" not in text] == []


def test_gpu_memory_is_shown_by_device_while_its_worker_lives():
    class Gpu:
        live = True

        def devices(self):
            return [DeviceState("cuda:0", self.live), DeviceState("cuda:1", is_live=False, restarts=2)]

    held = {"cuda:0": GpuMemory(1, 2, 3), "cuda:1": GpuMemory(4, 5, 6)}
    worker, metrics = Gpu(), Metrics()
    metrics.registry.register(LiveMetrics(ServerConfig(model="fake"), worker, held, None, {}))

    def shown(device, state):
        return metrics.registry.get_sample_value(PREFIX + "gpu_memory_bytes", {"worker": device, "state": state})

    assert [shown("cuda:0", state) for state in ("allocated", "reserved", "total")] == [1, 2, 3]
    assert shown("cuda:1", "total") is None
    worker.live = False
    assert shown("cuda:0", "total") is None
    assert metrics.registry.get_sample_value(PREFIX + "worker_restarts_total", {"worker": "cuda:1"}) == 2


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_say(everything):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=everything.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_queue_its_limits_and_refusals_are_shown():
    engine = FakeEngine()
    limits = {"queued_requests": 2, "queued_tokens": 5000, "tenant_share": 1.0}
    with measured(engine, cache_bytes=0, **limits) as server:
        added = Watched(server.metrics_address)
        engine.hold()
        first = server.stub.Attribute.future(prompt(20), timeout=PATIENCE)
        assert engine.started.wait(PATIENCE)
        waiting = [server.stub.Attribute.future(prompt(20, 21, 22), timeout=PATIENCE) for _ in range(2)]
        assert eventually(lambda: Scrape(server.metrics_address).value("queue_requests") == 2)
        shown = Scrape(server.metrics_address)
        names = ("queue_tokens", "queue_capacity_requests", "queue_capacity_tokens")
        assert [shown.value(name) for name in names] == [6, 2, 5000]
        assert failure(lambda: server.attribute(prompt(20)))[0].reason == "QUEUE_FULL"
        assert added("rejected_total", reason="QUEUE_FULL") == 1
        engine.released.set()
        assert all(call.result().explanations for call in (first, *waiting))
        assert added("queue_wait_seconds_count") == 3
        assert added("batch_requests_sum") == 3
        assert added("batch_requests_count") == 2
        assert Scrape(server.metrics_address).value("queue_requests") == 0


def test_batches_are_measured_with_and_without_padding():
    engine = FakeEngine()
    with measured(engine, cache_bytes=0) as server:
        engine.hold()
        first = server.stub.Attribute.future(prompt(20), timeout=PATIENCE)
        eventually(lambda: Scrape(server.metrics_address).value("batch_requests_count") == 1)  # noted after it begins
        added = Watched(server.metrics_address)
        pair = [server.stub.Attribute.future(prompt(*ids), timeout=PATIENCE) for ids in ((20, 21), (20, 21, 22, 23))]
        projection = ProjectNeuronRequest(neurons=(FfnNeuron(0, 1),))
        third = server.stub.ProjectNeuron.future(convert.project_neuron_request_to_proto(projection), timeout=PATIENCE)
        assert eventually(lambda: Scrape(server.metrics_address).value("queue_requests") == 3)
        engine.released.set()
        assert all(call.result() for call in (first, *pair, third))
        batches = added("batch_requests_count")
        assert added("batch_requests_sum") == 3
        assert added("batch_tokens_sum") == 6
        assert batches in (1, 2), "the projection may go by itself"
        assert added("batch_padding_ratio_sum") == pytest.approx(1 - 6 / 8)


def test_stages_are_measured_once_a_batch_and_tokenization_once_a_request():
    with measured() as server:
        added = Watched(server.metrics_address)
        server.attribute()
        server.attribute()  # from the cache
        stages = ("tokenization", "forward", "scoring", "bound", "exact")
        assert [added("stage_seconds_count", stage=stage) for stage in stages] == [2, 1, 1, 1, 1]
        assert [added("stage_seconds_sum", stage=stage) for stage in ("forward", "scoring")] == [0.25, 0.5]
        assert added("explained_tokens_total") == 1
        assert [added(name) for name in ("cache_hits_total", "cache_misses_total")] == [1, 1]
        assert added("cache_bytes") > 0


class CountedEngine(FakeEngine):
    """Its rankings say how many neurons they looked at; that of the attention neurons is not exact."""

    def run(self, tasks):
        return [self._counted(outcome) for outcome in super().run(tasks)]

    def _counted(self, outcome):
        if not isinstance(outcome, AttributeOutcome):
            return outcome
        ffn, decreasing, attention = (
            NeuronRanking((), Coverage(*counts))
            for counts in ((100, 90, 8, True), (100, 80, 7, True), (60, 50, 6, False))
        )
        rankings = {
            "ffn_value_neurons": ffn,
            "ffn_value_neurons_decreasing": decreasing,
            "attention_value_neurons": attention,
        }
        return replace(outcome, explanations=tuple(replace(each, **rankings) for each in outcome.explanations))


def test_neurons_and_inexact_rankings_are_added_up():
    with measured(CountedEngine()) as server:
        added = Watched(server.metrics_address)
        server.attribute()
        server.attribute(attribution(" Rome"))
        states = ("existing", "bounded", "scored")
        assert [added("neurons_total", part="ffn", state=state) for state in states] == [400, 340, 30]
        assert [added("neurons_total", part="attention", state=state) for state in states] == [120, 100, 12]
        assert [added("inexact_rankings_total", part=part) for part in ("ffn", "attention")] == [0, 2]


def test_batches_without_memory_are_counted():
    with measured(SmallEngine(), cache_bytes=0) as server:
        added = Watched(server.metrics_address)
        failure(lambda: server.attribute(prompt(HUGE)))
        assert [added(f"out_of_memory_{what}_total") for what in ("splits", "failures")] == [0, 1]
        assert added("rejected_total", reason="OUT_OF_MEMORY") == 1
        items = [messages.AttributeStreamRequest(key=str(n), request=prompt(20 + n)) for n in range(5)]
        items.append(messages.AttributeStreamRequest(key="huge", request=prompt(HUGE)))
        assert len(list(server.stub.AttributeStream(iter(items), timeout=PATIENCE))) == 6
        assert added("out_of_memory_failures_total") == 2
        assert added("rejected_total", reason="OUT_OF_MEMORY") == 2


def test_a_restarted_worker_is_counted_and_nothing_is_forgotten():
    address = free_address()
    with server_process(metrics_listen=address, cache_bytes=0) as process:
        server = stub_server(process)
        server.attribute()
        before = Scrape(address)
        [worker] = worker_processes(process.pid)
        assert before.value("worker_up", worker="cpu") == 1
        assert before.value("worker_restarts_total", worker="cpu") == 0
        resident = psutil.Process(worker).memory_info().rss
        assert before.value("worker_resident_memory_bytes", worker="cpu") == pytest.approx(resident, rel=0.2)
        psutil.Process(worker).kill()
        seen = []

        def is_down():
            seen.append(Scrape(address))
            return seen[-1].value("worker_up", worker="cpu") == 0

        assert eventually(is_down)
        assert seen[-1].value("worker_resident_memory_bytes", worker="cpu") is None
        assert eventually(lambda: Scrape(address).value("ready") == 1)
        server.attribute()
        server.channel.close()
        assert Scrape(address).value("worker_restarts_total", worker="cpu") == 1
        assert eventually(lambda: Scrape(address).value("explained_tokens_total") == 2)  # noted after the answer


def stub_server(process):
    """A ready server process and a channel to it, which is to be closed."""
    address = listening_address(process)
    assert process.stdout.readline().startswith("ready: ")
    return RunningServer(address, grpc.insecure_channel(address), None)


def test_loading_and_draining_are_shown():
    engine = FakeEngine()
    engine.loadable.clear()
    with running_server(ThreadWorker(engine), metrics_listen="localhost:0", drain_delay=0.0) as server, engine:
        shown = Scrape(server.metrics_address)
        assert [shown.value(name) for name in ("ready", "draining", "queue_requests")] == [0, 0, 0]
        failure(lambda: server.stub.Attribute(attribution(), timeout=PATIENCE, wait_for_ready=False))
        assert Scrape(server.metrics_address).value("rejected_total", reason="MODEL_LOADING") >= 1
        engine.loadable.set()
        assert server.loaded.wait(PATIENCE)
        assert Scrape(server.metrics_address).value("ready") == 1


def test_a_draining_server_says_so_until_its_last_call_is_answered(monkeypatch, tmp_path):
    address = free_address()
    monkeypatch.setenv("GATED_ENGINE", str(tmp_path))
    (tmp_path / "open").touch()
    settings = {"metrics_listen": address, "cache_bytes": 0, "grace": 60.0}
    with server_process("make_gated_engine", module="faulty_engines", **settings) as process:
        server = stub_server(process)
        (tmp_path / "open").unlink()
        call = server.stub.Attribute.future(attribution(), timeout=PATIENCE)
        assert eventually(lambda: Scrape(address).value("grpc_server_started_total", **RPC) == 1)
        process.terminate()
        assert eventually(lambda: Scrape(address).value("draining") == 1)
        assert Scrape(address).value("ready") == 0
        (tmp_path / "open").touch()
        assert call.result().explanations
        server.channel.close()
        assert process.wait(PATIENCE) == 0


def test_the_certificate_in_use_tells_when_it_expires(tmp_path):
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    files = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    with measured(**files) as server:
        added = Watched(server.metrics_address)
        pair.replace_by(authority.issue("later", lasts=30 * DAY))
        assert added("certificate_expiry_timestamp_seconds") == pytest.approx(29 * DAY.total_seconds(), abs=60)
        pair.key.write_text("no key")
        assert added("certificate_expiry_timestamp_seconds") == pytest.approx(29 * DAY.total_seconds(), abs=60)


def test_two_servers_of_one_process_count_apart():
    with measured() as one, measured() as other:
        added = Watched(other.metrics_address)
        one.attribute()
        assert added("grpc_server_started_total", **RPC) == 0
        assert Scrape(one.metrics_address).value("grpc_server_started_total", **RPC) == 1


def test_no_metrics_are_served_unless_asked_for():
    with running_server(ThreadWorker(FakeEngine())) as server:
        assert server.metrics_address == ""


def test_a_taken_port_is_refused_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = ServerConfig(model="fake", listen="localhost:0", metrics_listen=address)
        assert asyncio.run(Application(config, ThreadWorker(FakeEngine())).run()) == 1
    assert capsys.readouterr().err == (
        f"neuron-attribution serve: cannot serve metrics on {address}: Address already in use\n"
    )


SECRETS = ("mallory", "request-4711", " Paris", "/evil.Service/Method0", "tenant-9")


def test_no_call_whatever_adds_a_series_and_no_label_tells_of_callers(tmp_path):
    """Else a caller could fill the memory of this server and of the Prometheus that fetches from it."""
    tokens = tmp_path / "tokens"
    names = [f"tenant-{n}" for n in range(10)]
    tokens.write_text("".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in names))
    with measured(token_file=str(tokens)) as server:
        before = Scrape(server.metrics_address)
        for n, name in enumerate(names):
            metadata = (("authorization", f"Bearer {name}"), ("x-request-id", f"request-4711-{n}"))
            server.attribute(prompt(20 + n), metadata=metadata)
            failure(
                lambda m=metadata, n=n: server.attribute(attribution(" Paris", target={"id": 10**6 + n}), metadata=m)
            )
            failure(lambda m=metadata, n=n: _raw_call(server, f"/evil.Service/Method{n}", m))
            failure(lambda m=metadata, n=n: _raw_call(server, f"/{SERVICE}/Method{n}", m))
            failure(lambda n=n: server.attribute(metadata=(("authorization", f"Bearer mallory-{n}"),)))
            failure(lambda n=n: server.health(f"service-{n}"))
        after = Scrape(server.metrics_address)
    assert after.series.keys() == before.series.keys()
    assert not [secret for secret in SECRETS if secret in after.text]


def _raw_call(server, path, metadata):
    return server.channel.unary_unary(path)(b"", timeout=PATIENCE, metadata=metadata)


REFUSALS = {"ResourceExhaustedError", "UnavailableError", "DeadlineExceededError", "UnauthenticatedError", "Held"}


def test_every_reason_the_server_gives_has_a_series():
    given = {"DEADLINE_EXCEEDED"}
    files = set(Path(neuron_attribution_server.__file__).parent.rglob("*.py"))
    for file in files - {file for file in files if file.name == "ray_backend.py"}:  # it serves no calls
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REFUSALS:
                given |= {text for each in node.keywords if each.arg == "reason" for text in _texts(each.value)}
    assert given | {"QUEUE_FULL", "TENANT_QUEUE_FULL"} == set(REASONS)


def _texts(value):
    return [each.value for each in ast.walk(value) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def test_an_unknown_reason_is_counted_as_another():
    metrics = Metrics()
    metrics.rejected("NEVER_HEARD_OF")
    assert metrics.registry.get_sample_value(PREFIX + "rejected_total", {"reason": OTHER}) == 1
