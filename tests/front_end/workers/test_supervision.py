"""Worker processes that die, hang, stop or find no memory: real processes, real signals, calls in flight."""

import asyncio
import multiprocessing
import os
import resource
import signal
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from neuron_attribution_server.front_end.workers import deaths
from neuron_attribution_server.front_end.workers import pool as workers
from neuron_attribution_server.front_end.workers.deaths import Death
from neuron_attribution_server.front_end.workers.process import ProcessWorker
from neuron_attribution_server.front_end.workers.restarts import FIRST_BACKOFF, MOST_BACKOFF, Restarts
from neuron_attribution_server.services import LIVENESS, SERVICE
from neuron_attribution_server.settings import heap
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.tasks import ExplainedToken
from service.fakes import DIE
from service.faulty_engines import HANG, make_engine_with_checkpoints
from service.scraping import Scrape, free_address
from service.servers import (
    PATIENCE,
    listening_address,
    prompt,
    running_server,
    server_process,
    with_stub,
    worker_processes,
)

pytestmark = pytest.mark.process

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CALLERS = 64
TOKEN = ExplainedToken(0)


def own_prompt(caller):
    """A prompt that no other caller sends."""
    return prompt(100 + caller, 101)


def is_right(response, caller):
    return [token.id for token in response.tokens] == [100 + caller, 101] and len(response.explanations) == 1


@contextmanager
def slow_server(**settings):
    """A server process with the slow engine, ready; yields the process and its address."""
    settings = {"cache_bytes": 0, **settings}
    with server_process("make_slow_engine", module="faulty_engines", **settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        yield process, address


def answers_around(address, blow):
    """The answers of 64 concurrent callers; `blow` is struck once the first of them has come."""

    async def scenario(stub):
        calls = [asyncio.ensure_future(stub.Attribute(own_prompt(caller))) for caller in range(CALLERS)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert sum(call.done() for call in calls) < CALLERS
        blow()
        return await asyncio.gather(*calls)

    return with_stub(address, scenario)


def all_right(answers):
    return [caller for caller, answer in enumerate(answers) if not is_right(answer, caller)] == []


def strike(process, number=signal.SIGKILL):
    [worker] = worker_processes(process.pid)
    os.kill(worker, number)


@contextmanager
def watched_health(address, service=SERVICE):
    """The health states that Watch shows, in a list that grows."""
    seen = []

    def follow(watch):
        with suppress(grpc.RpcError):  # cancelled
            for state in watch:
                seen.append(state.status)

    with grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        thread = threading.Thread(target=follow, args=(watch,))
        thread.start()
        try:
            yield seen
        finally:
            watch.cancel()
            thread.join()


def eventually(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # another process changes, and nothing tells


def open_files(process):
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def children(process):
    return len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def test_every_call_is_answered_though_the_worker_is_killed_again_and_again():
    with (
        slow_server() as (process, address),
        watched_health(address) as seen,
        watched_health(address, LIVENESS) as liveness,
    ):
        assert all_right(answers_around(address, lambda: None))
        eventually(lambda: seen == [SERVING])
        before, workers = open_files(process), children(process)  # the callers' connection may still be closing
        for kills in (1, 2, 3):
            assert all_right(answers_around(address, lambda: strike(process)))
            eventually(lambda: seen == [SERVING] + [NOT_SERVING, SERVING] * kills)  # noqa: B023 - called at once
        eventually(lambda: open_files(process) <= before and children(process) == workers)
        assert liveness == [SERVING], "whoever restarts what is not alive leaves this to the server"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert log.count("was killed by SIGKILL") >= 3
    assert "worker-0 is back as process" in log


def test_two_workers_share_the_batches_and_one_carries_on_alone():
    with slow_server(workers=2) as (process, address), watched_health(address) as seen:
        first, _ = worker_processes(process.pid)
        assert all_right(answers_around(address, lambda: os.kill(first, signal.SIGKILL)))
        eventually(lambda: len(worker_processes(process.pid)) == 2)
        assert NOT_SERVING not in seen


def test_a_spare_process_takes_over_and_is_replaced_whoever_dies():
    with slow_server(spare_worker=True) as (process, address):
        eventually(lambda: len(worker_processes(process.pid)) == 2)
        worker, spare = worker_processes(process.pid)
        assert all_right(answers_around(address, lambda: os.kill(worker, signal.SIGKILL)))
        eventually(lambda: len(worker_processes(process.pid)) == 2)
        assert spare in worker_processes(process.pid)
        [fresh] = set(worker_processes(process.pid)) - {spare}
        os.kill(fresh, signal.SIGKILL)  # nobody notices, and then there is none for the next death
        assert all_right(answers_around(address, lambda: os.kill(spare, signal.SIGKILL)))
        eventually(lambda: len(worker_processes(process.pid)) == 2)
        assert not {worker, spare, fresh} & set(worker_processes(process.pid))
        left = worker_processes(process.pid)
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_a_poisonous_request_fails_alone():
    async def scenario(stub):
        filler = asyncio.ensure_future(stub.Attribute(own_prompt(99)))
        calls = [asyncio.ensure_future(stub.Attribute(own_prompt(caller))) for caller in range(8)]
        calls.insert(4, asyncio.ensure_future(stub.Attribute(prompt(DIE))))
        await filler
        return await asyncio.gather(*calls, return_exceptions=True)

    with slow_server() as (_, address):
        answers = with_stub(address, scenario)
        poisoned = answers.pop(4)
        assert all_right(answers)
        assert poisoned.code() is grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(poisoned, address).reason == "WORKER_DIED"
        pushback = dict(poisoned.trailing_metadata())["grpc-retry-pushback-ms"]
        assert pushback == "-1", "a client that sends it again would kill the next worker"


@contextmanager
def turnstile_server(**settings):
    """A ready server process whose batches a turnstile lets in, its address, and a stub that tries nothing again."""
    settings = {"module": "faulty_engines", "cache_bytes": 0, "restarts": 10, **settings}
    with server_process("make_turnstile_engine", **settings) as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: ")
        with grpc.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
            yield process, services.NeuronAttributionServiceStub(channel)


def begun(stub, *callers):
    return [stub.Attribute.future(own_prompt(caller), timeout=PATIENCE) for caller in callers]


def test_a_worker_that_dies_under_many_under_half_and_once_under_one_costs_nobody_an_answer(turnstile):
    """Whoever was in a batch of several has done nothing yet: what kills workers does it alone, and twice."""
    metrics = free_address()
    with turnstile_server(metrics_listen=metrics) as (process, stub):
        calls = begun(stub, 0)
        eventually(lambda: turnstile.batches == [1])
        calls += begun(stub, 1, 2, 3, 4)
        eventually(lambda: Scrape(metrics).value("queue_requests") == 4)
        turnstile.allow(1)
        eventually(lambda: turnstile.batches == [1, 4])
        strike(process)
        for batches in ([1, 4, 2], [1, 4, 2, 1]):
            eventually(lambda: turnstile.batches == batches)  # noqa: B023 - called at once
            strike(process)
        eventually(lambda: turnstile.batches == [1, 4, 2, 1, 1])
        turnstile.allow(len(calls) * 3)
        assert all_right([call.result() for call in calls])


def test_a_worker_that_never_got_the_request_does_not_speak_against_it(turnstile):
    with turnstile_server() as (process, stub):
        strike(process, signal.SIGSTOP)
        [call] = begun(stub, 0)
        time.sleep(0.5)  # it is written, and nobody reads it
        strike(process)
        eventually(lambda: turnstile.batches == [1])
        strike(process)
        eventually(lambda: turnstile.batches == [1, 1])
        turnstile.allow(2)
        assert is_right(call.result(), 0)


@pytest.mark.parametrize(
    ("number", "most", "times"), [(signal.SIGSEGV, 2, "twice"), (signal.SIGKILL, 5, "5 times")], ids=["dies", "killed"]
)
def test_what_kills_alone_is_refused(turnstile, number, most, times):
    """What it dies of by itself twice. Kills from outside are no request's fault, up to a number."""
    with turnstile_server() as (process, stub):
        [call] = begun(stub, 0)
        for struck in range(1, most + 1):
            eventually(lambda: turnstile.batches == [1] * struck)  # noqa: B023 - called at once
            assert not call.done()
            strike(process, number)
        error = from_rpc_error(call.exception(), "the server")
        assert error.reason == "WORKER_DIED"
        assert f"died {times} while it ran this request alone" in error.message


def test_nothing_is_kept_of_workers_that_died(monkeypatch):
    """Each knows megabytes of a real model: its tokenizer."""
    known = weakref.WeakSet()

    class Known(ProcessWorker):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            known.add(self)

    monkeypatch.setattr(workers, "ProcessWorker", Known)
    monkeypatch.setattr(heap, "_PAUSE_SECONDS", 0.1)
    pool = workers.worker_pool(ServerConfig(model="fake", restarts=10), [make_engine_with_checkpoints])
    with running_server(pool, restarts=10, cache_bytes=0) as server:
        assert server.loaded.wait(PATIENCE)
        time.sleep(0.3)
        for caller in range(4):
            call = server.stub.Attribute.future(own_prompt(caller), timeout=PATIENCE)
            time.sleep(0.1)  # it is being computed
            eventually(multiprocessing.active_children)
            multiprocessing.active_children()[0].kill()
            assert is_right(call.result(), caller)
        eventually(lambda: len(known) == 1)
        restarts = pool.devices()[0].restarts
        eventually(multiprocessing.active_children)
        multiprocessing.active_children()[0].kill()  # it has nothing to do
        eventually(lambda: pool.devices()[0].restarts > restarts and pool.is_live)
        eventually(lambda: len(known) == 1)


def allow_descriptors(process, *limits):
    """Set the limits of a process's descriptors. What is open stays."""
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)


def test_a_worker_that_cannot_be_spawned_comes_later(tmp_path):
    log = tmp_path / "log"
    with log.open("w") as errors, slow_server(errors=errors, log_format="text") as (process, address):
        before = open_files(process)
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        allow_descriptors(process, 3, limits[1])
        strike(process)
        eventually(lambda: "its process cannot be started: [Errno 24] Too many open files" in log.read_text())
        allow_descriptors(process, *limits)
        assert all_right(answers_around(address, lambda: None))
        eventually(lambda: open_files(process) <= before)
        assert "worker-0 (no process) could not be restarted: its process cannot be started" in log.read_text()


def test_a_worker_that_can_never_be_spawned_ends_the_server_when_its_restarts_are_used():
    with slow_server(restarts=2, log_format="text") as (process, _):
        allow_descriptors(process, 3, 3)
        strike(process)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert log.count("cannot be started: [Errno 24] Too many open files; deaths") == 2
    assert "deaths within 600 seconds: 3, allowed: 2; more than are allowed: giving up" in log
    assert "Traceback" not in log


def test_a_stopped_worker_is_noticed_and_replaced():
    with slow_server(heartbeat_timeout=2.0) as (process, address):
        assert all_right(answers_around(address, lambda: strike(process, signal.SIGSTOP)))
        process.send_signal(signal.SIGTERM)
        assert "no sign of life for 2 seconds" in process.communicate(timeout=PATIENCE)[1]


def test_a_batch_that_never_ends_is_killed_and_only_its_culprit_fails():
    async def scenario(stub):
        hanging = asyncio.ensure_future(stub.Attribute(prompt(HANG)))
        calls = [stub.Attribute(own_prompt(caller)) for caller in range(8)]
        return await asyncio.gather(hanging, *calls, return_exceptions=True)

    with slow_server(batch_timeout=2.0) as (_, address):
        hung, *answers = with_stub(address, scenario)
        assert all_right(answers)
        error = from_rpc_error(hung, address)
        assert error.reason == "WORKER_DIED"
        assert "running for 2 seconds" in error.message


def test_what_nobody_waits_for_any_more_is_not_run_again():
    """It killed one worker; running it again would kill another, which is one more than this server survives."""

    async def scenario(stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Attribute(prompt(HANG), timeout=0.5)
        return caught.value, await stub.Attribute(own_prompt(1))

    with slow_server(batch_timeout=2.0, restarts=1) as (process, address):
        abandoned, answer = with_stub(address, scenario)
        assert abandoned.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert is_right(answer, 1)
        assert process.poll() is None


def test_a_stream_is_told_when_the_server_gives_up():
    """At once, not when its grace ends."""
    with slow_server(restarts=0, grace=PATIENCE) as (process, address), grpc.insecure_channel(address) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        items = [messages.AttributeStreamRequest(key="deadly", request=prompt(DIE))]
        [answer] = stub.AttributeStream(iter(items), timeout=PATIENCE / 2)
        assert answer.key == "deadly"
        assert answer.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert "the worker has ended" in answer.error.message
        assert process.wait(PATIENCE / 2) == 1


def test_a_load_that_never_ends_ends_the_server():
    with server_process("never_make_an_engine", module="faulty_engines", load_timeout=2.0) as process:
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "loading for 2 seconds (load_timeout)" in log


def test_too_many_deaths_end_the_server():
    with slow_server(restarts=1) as (process, address):
        assert all_right(answers_around(address, lambda: strike(process)))
        strike(process)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "giving up" in log


def test_a_full_queue_without_a_worker_sends_callers_elsewhere():
    with slow_server(queued_requests=1) as (process, address):

        async def scenario(stub):
            strike(process)
            await asyncio.sleep(0.2)
            model = asyncio.ensure_future(stub.GetModel(messages.GetModelRequest()))
            calls = [asyncio.ensure_future(stub.Attribute(own_prompt(caller))) for caller in range(3)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            return await model, answers

        model, answers = with_stub(address, scenario)
        assert model.version
        errors = [from_rpc_error(answer, address) for answer in answers if isinstance(answer, grpc.RpcError)]
        assert [error.reason for error in errors] == ["WORKER_RESTARTING"] * 2
        assert all(error.retry_after > 0 for error in errors)


def test_pauses_double_until_a_batch_is_finished_and_old_deaths_are_forgotten():
    restarts = Restarts(allowed=3, window=100.0)
    assert [restarts.died(now) for now in (0, 1, 2, 3)] == [0, FIRST_BACKOFF, 2 * FIRST_BACKOFF, None]
    restarts.worked()
    assert restarts.died(102) == 0
    many = Restarts(allowed=1000, window=100.0)
    assert max(many.died(now) for now in range(90)) == MOST_BACKOFF


def test_deaths_are_described_in_words(monkeypatch, tmp_path):
    """And known to be somebody's kill, or not: the machine counts those that it kills because memory runs out."""
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(deaths, "_COUNTERS", counters)
    assert Death(-signal.SIGKILL, None).describe() == "was killed by SIGKILL, as the system does when memory runs out"
    counters.write_text("oom_kill_before 9\noom_kill 7\n")
    assert Death(3, 7).describe() == "ended with exit code 3"
    assert Death(-signal.SIGSEGV, 7).describe() == "was killed by SIGSEGV"
    assert Death(-signal.SIGKILL, 7).describe() == "was killed by SIGKILL, and not for want of memory"
    assert Death(-signal.SIGKILL, 6).describe() == "was killed by SIGKILL, as the system does when memory runs out"
    kinds = [(3, 7), (-signal.SIGSEGV, 7), (-signal.SIGKILL, None), (-signal.SIGKILL, 6), (-signal.SIGKILL, 7)]
    assert [Death(*each).is_from_outside for each in kinds] == [False] * 4 + [True]
    assert Death(-signal.SIGTERM, 6).is_from_outside
