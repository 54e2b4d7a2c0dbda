"""Kill the worker process of a real server again and again while callers wait for answers, and print what became of it.

    cd tests && python -m soak.kill_worker [--kills 20] [--callers 64] [--model demo] [--every 15]

Without --model a fake engine answers; without --every each kill waits until the callers have been answered. An
answer is right where it equals the one given before the first kill. Exit
status 1 where a call failed or was answered wrong, or where processes or file descriptors leaked.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryFile

import grpc
import psutil
from neuron_attribution.transport.status import from_rpc_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from service.servers import listening_address, server_process, worker_processes

from soak.processes import resident_bytes

_PATIENCE = 600
_SETTINGS = {"restarts": 1000, "restart_window": 60.0, "cache_bytes": 0}
_AGAIN = "of a lost batch again: "


@dataclass
class Tally:
    """What the callers saw."""

    calls: int = 0
    right: int = 0
    wrong: int = 0
    failures: Counter = field(default_factory=Counter)


@contextmanager
def serving(model, errors):
    """A ready server process, and its address."""
    if model is None:
        server = server_process("make_slow_engine", module="faulty_engines", errors=errors, **_SETTINGS)
    else:
        server = model_process(model, errors)
    with server as process:
        address = listening_address(process)
        assert process.stdout.readline().startswith("ready: "), "the server did not load its model"
        yield process, address
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def model_process(model, errors):
    """The server's own command, with a process ready for the next death: without, imports take most of 15 seconds."""
    script = "import sys; from neuron_attribution.cli.main import main; sys.exit(main())"
    settings = {**_SETTINGS, "spare_worker": "true"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-c", script, "serve", "--model", model, "--listen", "localhost:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def request(caller):
    prompt = messages.Prompt(token_ids=messages.TokenIds(ids=(100 + caller, 101)))
    return messages.AttributeRequest(prompt=prompt, parts=[messages.PART_LAYERS], projection_top_k=0)


def is_right(response, expected):
    """Whether the tokens are the same and the scores of the layers differ by no more than another batch makes them."""
    [[explanation], [wanted]] = response.explanations, expected.explanations
    pairs = zip(explanation.layers.ffn, wanted.layers.ffn, strict=True)
    return response.tokens == expected.tokens and all(abs(one - other) < 1e-3 for one, other in pairs)


async def call_on(stub, caller, expected, tally, stopping):
    """Call without a pause until told to stop."""
    while not stopping.is_set():
        try:
            response = await stub.Attribute(request(caller), timeout=_PATIENCE)
        except grpc.RpcError as error:
            tally.failures[from_rpc_error(error, "").reason] += 1
        else:
            right = is_right(response, expected)
            tally.right += right
            tally.wrong += not right
        tally.calls += 1


async def kill_often(process, kills, callers, tally, every):
    """Kill the worker, each time once every caller has been answered twice since the one before, or `every` so often.

    `every` is in seconds, or None.
    """
    for number in range(1, kills + 1):
        enough, due = tally.calls + (0 if every else 2 * callers), time.monotonic() + (every or 0)
        while tally.calls < enough or time.monotonic() < due or not worker_processes(process.pid):
            assert process.poll() is None, "the server has ended"
            await asyncio.sleep(0.01)
        os.kill(max(worker_processes(process.pid), key=resident_bytes), signal.SIGKILL)  # a spare one has no model
        print(f"kill {number}: {tally.calls} calls so far, {tally.right} right", flush=True)
    enough = tally.calls + 2 * callers
    while tally.calls < enough:
        await asyncio.sleep(0.01)


async def soak(process, address, kills, callers, every, workers):
    """Run the trial of so many worker processes; return the tally, and the server's resources before and after."""
    tally, stopping = Tally(), asyncio.Event()
    async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        stub = services.NeuronAttributionServiceStub(channel)
        expected = [await stub.Attribute(request(caller), timeout=_PATIENCE) for caller in range(callers)]
        before = await resources(process, workers)
        calling = [
            asyncio.create_task(call_on(stub, caller, expected[caller], tally, stopping)) for caller in range(callers)
        ]
        await kill_often(process, kills, callers, tally, every)
        stopping.set()
        await asyncio.gather(*calling)
        return tally, before, await resources(process, workers)


async def resources(process, workers):
    """Processes, open files and resident megabytes of the server (the front end, without its worker).

    Measured once it has so many worker processes.
    """
    while len(worker_processes(process.pid)) < workers:
        await asyncio.sleep(0.01)
    server = psutil.Process(process.pid)
    megabytes = server.memory_info().rss / 2**20
    return {"processes": 1 + len(server.children()), "open files": server.num_fds(), "resident MB": round(megabytes)}


def tasks_run_again(log):
    return sum(int(line.split(_AGAIN)[1].split()[0]) for line in log.splitlines() if _AGAIN in line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--model", help="a real model, such as demo; a fake engine by default")
    parser.add_argument("--every", type=float, help="seconds between kills, whatever is answered")
    arguments = parser.parse_args()
    started = time.monotonic()
    with TemporaryFile("w+", encoding="utf-8") as errors:
        with serving(arguments.model, errors) as (process, address):
            workers = 1 if arguments.model is None else 2
            run = soak(process, address, arguments.kills, arguments.callers, arguments.every, workers)
            tally, before, after = asyncio.run(run)
        errors.seek(0)
        log = errors.read()
    rows = {
        "kills": arguments.kills,
        "seconds": round(time.monotonic() - started),
        "calls": tally.calls,
        "right answers": tally.right,
        "wrong answers": tally.wrong,
        "tasks run again": tasks_run_again(log),
        "failures": dict(tally.failures) or 0,
        **{f"{name} before, after": f"{before[name]}, {after[name]}" for name in before},
    }
    for name, value in rows.items():
        print(f"{name:28} {value}")
    leaked = any(after[name] > before[name] for name in ("processes", "open files"))
    return int(bool(tally.wrong or tally.failures or leaked))


if __name__ == "__main__":
    sys.exit(main())
