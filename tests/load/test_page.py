"""docs/capacity.md: what is measured for it, what it is modelled from, and that its tables are the present ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from neuron_attribution import Client
from neuron_attribution.results import ModelSizes
from neuron_attribution_server.tasks.costs import MemoryCost
from service.servers import listening_address, server_process

from load import cost, page
from load.capacity import Bounds, Step
from load.growth import Point, Server, measure, server
from load.offering import Sample
from load.study import Plan, Study
from load.summary import Summary

PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"
DEMO = ModelSizes(
    layers=30, heads=9, key_value_heads=3, head_size=64, ffn_width=1536, hidden_size=576, vocabulary=49152
)
PROSE = "The capital of France is Paris"


def test_the_modelled_tables_are_those_of_the_present_code():
    assert f"<!-- modelled -->\n{page.modelled()}\n<!-- /modelled -->" in PAGE.read_text()


def test_a_part_of_the_page_is_replaced_and_the_rest_stays(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- a -->\nold\ntext\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\nafter\n")
    page.write(path, "a", r"new \1")
    assert path.read_text() == (
        "before\n<!-- a -->\nnew \\1\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\nafter\n"
    )
    with pytest.raises(ValueError, match="0 parts between <!-- c -->"):
        page.write(path, "c", "")


def test_operations_follow_from_sizes():
    """The demo's numbers: its 106 million parameters in layers, and the rows that docs/benchmarks.md counts."""
    assert cost.layer_parameters(DEMO) == 106_168_320
    assert cost.weight_bytes(DEMO, torch.float32, tied=True) == 4 * (106_168_320 + 49152 * 576)
    assert cost.forward_operations(DEMO, 1) == 2 * 106_168_320 + 4 * 30 * 576
    assert cost.exact_rows(DEMO, 17, 10) == 270 + 61 + 76 + 170 + 30
    assert cost.scoring_operations(DEMO, 17, 10) == 2 * 607 * 49152 * 576


def test_a_batch_is_as_large_as_memory_and_the_defaults_allow():
    free = 100e9
    assert cost.largest_batch(DEMO, torch.float32, 16, free) == 32
    assert cost.largest_batch(DEMO, torch.float32, 1024, free) == 8
    assert cost.largest_batch(DEMO, torch.float32, 1024, 0) == 1
    few = cost.largest_batch(DEMO, torch.float32, 1024, 6e9)
    assert 1 < few < 8
    assert (
        cost.batch_bytes(DEMO, torch.float32, few, 1024) <= 3e9 < cost.batch_bytes(DEMO, torch.float32, few + 1, 1024)
    )


def test_points_are_measured_on_real_servers_in_turn():
    with (
        server_process("make_timed_engine", cache_bytes=0) as one,
        server_process("make_timed_engine", cache_bytes=0) as other,
    ):
        servers = [ready(process) for process in (one, other)]
        points = [Point("one", servers[:1], 6), Point("both", servers, 6, k=5)]
        measure(points, 2, 1.0, PROSE, np.random.default_rng(0))
    for point in points:
        assert len(point.rates) == len(point.front_end) == 2
        assert 1 < point.batch <= 8
        assert all(each > 0 for each in (point.rate, point.front_end[0], point.peaks[0]))
    assert [each.model != each.front_end for each in servers] == [True, True]


def ready(process):
    address = listening_address(process)
    assert process.stdout.readline().startswith("ready: ")
    with Client(address) as client:
        return server(address, process.pid, client.get_model().sizes)


def test_the_measured_part_tells_what_was_found():
    demo = Server("localhost:1", 1, 2, 100 * 2**20, DEMO)
    first = point("16 tokens, k = 10", demo, [2.0, 4.0], 16, 10)
    longer = point("64 tokens, k = 10", demo, [1.0, 2.5], 64, 10)
    more = point("16 tokens, k = 300", demo, [1.0, 1.0], 16, 300)
    steps = [Step(1.5, Summary([Sample("short", 0, 0, 0.5, "OK")] * 90, 60))]
    info = type(
        "Info", (), {"sizes": DEMO, "model": type("M", (), {"name": "demo", "dtype": "float32"}), "device": "cpu"}
    )
    found = Study(info, 0.5, [first, longer], [first, more], [first], [first, longer], steps)
    text = page.measured(found, Plan(20, 2, Bounds(5, 0.01)))
    assert "| 64 tokens, k = 10 | 1.75 (1.00 to 2.50) | 0.56 | 100 ms |" in text
    assert "| 16 tokens, k = 300 | 1.00 (1.00 to 1.00) | 0.38 | 100 ms |" in text
    predicted = cost.batch_bytes(DEMO, torch.float32, 4, 64) / 2**20
    assert f"| 28 MiB | {predicted:,.0f} MiB for 4 |" in text
    assert "| 134 M | 100 MiB |" in text
    assert "Capacity: **1.50 calls a second** with p99 within 5.00 s" in text
    assert "2 of 20 s a point" in text
    assert page.BUSY not in text
    assert page.BUSY in page.measured(replace(found, load=3.0), Plan(20, 2, Bounds(5, 0.01)))


def point(label, of, rates, tokens, k):
    found = Point(label, [of], tokens, k)
    found.rates, found.forward, found.scoring = rates, [0.1, 0.1], [0.4, 0.4]
    found.front_end, found.peaks, found.scored, found.batch = [0.003] * 2, [128 * 2**20] * 2, [76.0], 4
    return found


def test_a_prediction_may_take_what_it_is_given():
    memory = cost.predicted_memory(DEMO, torch.bfloat16, available=123)
    assert isinstance(memory, MemoryCost)
    assert memory.available == 123
    assert memory.per_row_token == 2 * 4 * 30 * 9
