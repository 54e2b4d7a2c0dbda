"""The load tool: when callers come, what their latency counts from, what is found and how it is told."""

import asyncio
import time

import numpy as np
import pytest
from neuron_attribution import AsyncClient, ResourceExhaustedError
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import FakeEngine
from service.servers import PATIENCE, running_server

from load import report
from load.__main__ import main
from load.arrivals import Arrival, poisson
from load.capacity import FACTOR, RESOLUTION, Bounds, capacity, search
from load.mix import MIX, Kind, Mix, read_mix
from load.offering import Sample, offer
from load.summary import Summary, quantile
from load.target import Target

STALL = 1.5
SHORT = Kind(name="short", call="attribute", tokens=(4, 12))
SMALL_KINDS = """
[[kinds]]
name = "short"
call = "attribute"
tokens = [4, 12]
arguments = { top_k = 3, direction = "both" }
[[kinds]]
name = "stream"
call = "stream"
tokens = [4, 12]
items = 3
[[kinds]]
name = "project"
call = "project"
neurons = 2
[[kinds]]
name = "tokenize"
call = "tokenize"
tokens = [1, 5]
"""


def generator(seed=0):
    return np.random.default_rng(seed)


def test_arrivals_are_a_poisson_process():
    """As many as the rate says, with gaps that are exponential: their standard deviation is their mean."""
    rate, seconds = 50, 400
    arrivals = poisson(rate, seconds, [SHORT], generator())
    times = np.array([arrival.at for arrival in arrivals])
    assert abs(len(times) - rate * seconds) < 5 * (rate * seconds) ** 0.5
    assert 0 <= times[0] < times[-1] <= seconds
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert np.quantile(gaps, [0.1, 0.5, 0.9]) == pytest.approx(-np.log([0.9, 0.5, 0.1]) / rate, rel=0.05)
    counts = np.bincount(times.astype(int), minlength=seconds)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.25), "neither regular nor in bursts"


def test_kinds_come_by_weight_and_a_seed_gives_the_same_again():
    often, seldom = Kind(name="often", call="tokenize", weight=9), Kind(name="seldom", call="tokenize", weight=1)
    arrivals = poisson(100, 50, [often, seldom], generator(1))
    assert sum(arrival.kind is often for arrival in arrivals) / len(arrivals) == pytest.approx(0.9, abs=0.02)
    assert arrivals == poisson(100, 50, [often, seldom], generator(1))
    assert arrivals != poisson(100, 50, [often, seldom], generator(2))


class StallingEngine(FakeEngine):
    """Stands still once, in the middle of a load, and else answers at once."""

    def run(self, tasks):
        if sum(len(batch) for batch in self.batches) > 20 and not self.stalled:
            self.stalled = True
            time.sleep(STALL)
        return super().run(tasks)

    stalled = False


def test_a_servers_stall_is_seen_by_every_call_that_was_due_during_it():
    with running_server(ThreadWorker(StallingEngine()), cache_bytes=0) as server:
        assert server.loaded.wait(PATIENCE)
        target = Target(lambda: AsyncClient(server.address), Mix((SHORT,), "The capital of France is"), generator())
        summary = target.run(40, 4)
    assert set(summary.codes) == {"OK"}
    first = max(summary.samples, key=lambda sample: sample.latency)
    end = first.started + STALL
    during = [sample for sample in summary.samples if first.intended <= sample.intended < end]
    assert len(during) > 20
    assert all(sample.intended + sample.latency >= end for sample in during)
    assert quantile(summary.latencies, 0.99) > 0.8 * STALL


def test_a_stall_of_the_load_itself_counts_for_what_was_due_during_it():
    calls = []

    async def call(_):
        calls.append(None)
        if len(calls) == 5:
            time.sleep(0.5)

    samples = asyncio.run(offer([Arrival(number / 100, SHORT) for number in range(100)], call))
    assert sum(sample.ended - sample.started > 0.25 for sample in samples) == 1, "by itself, one call took long"
    assert sum(sample.latency > 0.25 for sample in samples) >= 20
    assert quantile(Summary(samples, 1).lateness, 0.99) > 0.4, "and the report says so"


def test_a_failed_call_is_counted_by_its_status():
    async def call(_):
        raise ResourceExhaustedError("full")

    summary = Summary(asyncio.run(offer([Arrival(0, SHORT)] * 3, call)), 1)
    assert summary.codes == {"RESOURCE_EXHAUSTED": 3}
    assert (summary.failed_share, summary.achieved_rate, summary.latencies) == (1, 0, [])


def test_the_table_has_each_kinds_quantiles():
    slow = [Sample("slow", at, at + 1, at + (at + 1) / 10, "OK") for at in range(100)]
    fast = [Sample("fast", 50, 50, 50.005, "OK"), Sample("fast", 60, 60, 61, "UNAVAILABLE")]
    kinds = [Kind(name=name, call="attribute") for name in ("slow", "fast")]
    text = report.run(Summary([*slow, *fast], 200), kinds)
    assert "| slow | 100 | 100 | 0.50 | 5.00 s | 9.00 s | 9.90 s | 10.00 s |" in text
    assert "| fast | 2 | 1 | 0.01 | 5.0 ms | 5.0 ms | 5.0 ms | 5.0 ms |" in text
    assert "| **all** | 102 | 101 |" in text
    assert "| OK | 101 |\n| UNAVAILABLE | 1 |" in text
    assert "Offered 0.51 calls a second, answered 0.51. Calls were sent 1.00 s late at p99" in text


@pytest.mark.parametrize("start", [1, 10, 300])
def test_the_search_finds_what_a_server_can_take(start):
    bounds = Bounds(p99=1, failed=0.01)
    steps = search(lambda rate: overloaded_above(37, rate), start, bounds, seconds=60)
    assert 37 / RESOLUTION <= capacity(steps, bounds) <= 37
    assert len(steps) < 16
    assert f"Capacity: **{capacity(steps, bounds):.2f} calls a second**" in report.search(steps, bounds)


def overloaded_above(limit, rate):
    latency = 0.5 if rate <= limit else 2
    return Summary([Sample("short", 0, 0, latency, "OK")] * 10, 60)


def test_the_search_ends_where_no_rate_is_low_enough():
    bounds = Bounds(p99=1, failed=0.01)
    steps = search(lambda rate: overloaded_above(0, rate), 1, bounds, seconds=60)
    assert capacity(steps, bounds) is None
    lowest = min(step.rate for step in steps)
    assert 10 <= 60 * lowest < 10 * FACTOR, "fewer calls would say nothing"
    assert f"Capacity: **under {lowest:.2f} calls" in report.search(steps, bounds)


def test_failures_end_the_search_too():
    def refused(rate):
        code = "OK" if rate <= 5 else "RESOURCE_EXHAUSTED"
        return Summary([Sample("short", 0, 0, 0.1, "OK")] * 9 + [Sample("short", 0, 0, 0.1, code)], 60)

    bounds = Bounds(p99=1, failed=0.05)
    assert 5 / RESOLUTION <= capacity(search(refused, 1, bounds, seconds=60), bounds) <= 5


@pytest.fixture
def small_mix(tmp_path):
    """Every kind of call, short enough for the fake model."""
    path = tmp_path / "mix.toml"
    path.write_text(f'{SMALL_KINDS}\n[prose]\ntext = "{read_mix(MIX).prose}"\n')
    return path


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def address(engine):
    with running_server(ThreadWorker(engine)) as server, engine:
        assert server.loaded.wait(PATIENCE)
        yield server.address


def test_five_seconds_against_a_server(address, engine, small_mix, tmp_path, capsys):
    output, plot = tmp_path / "load.md", tmp_path / "load.svg"
    options = ["--rate", "30", "--seconds", "5", "--mix", str(small_mix), "--output", str(output), "--plot", str(plot)]
    assert main(["--address", address, *options]) == 0
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in text.splitlines() if " | " in line}
    counts = {name: int(rows[f"| {name}"][0]) for name in ("short", "stream", "project", "tokenize", "**all**")}
    assert counts["**all**"] == sum(counts.values()) / 2 > 100
    assert rows["| OK"] == [f"{counts['**all**']} |"]
    assert "<svg" in plot.read_text()
    prompts = [task.token_ids for batch in engine.batches for task in batch if hasattr(task, "token_ids")]
    assert len(set(prompts)) > 0.95 * len(prompts) > 100, "no cache answers"


def test_the_capacity_of_a_server_is_searched_for(address, small_mix, tmp_path, capsys):
    plot = tmp_path / "capacity.png"
    options = ["--capacity", "--rate", "20", "--seconds", "1", "--p99", "0.0001", "--mix", str(small_mix)]
    assert main(["--address", address, *options, "--only", "short", "--plot", str(plot)]) == 0
    assert "Capacity: **under " in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_an_address_the_demo_model_is_served(capsys):
    assert main(["--rate", "10", "--seconds", "2", "--only", "tokenize"]) == 0
    text = capsys.readouterr().out
    assert "| model | SmolLM2-135M-Instruct: 30 layers" in text
    assert "| server | on this machine, beside the load |" in text
    assert "| OK |" in text


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--rate", "--seconds", "--mix", "--capacity", "--address", "--token-file"))


@pytest.mark.parametrize(
    ("kinds", "words", "said"),
    [
        (SMALL_KINDS, ["--only", "long"], "'long'; there are: short; stream; project; tokenize"),
        (SMALL_KINDS.replace('"stream"', '"flow"'), [], "which is none of attribute, stream, project, tokenize"),
        (SMALL_KINDS.replace("items", "times"), [], "'times'"),
        ("", [], "kinds"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused_by_name(tmp_path, capsys, kinds, words, said):
    path = tmp_path / "mix.toml"
    path.write_text(f'{kinds}\n[prose]\ntext = "The capital"\n')
    with pytest.raises(SystemExit) as left:
        main(["--mix", str(path), *words])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
