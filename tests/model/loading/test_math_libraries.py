"""What bit for bit equal answers rest on: a row of a matrix product does not depend on how many rows there are.

And how many threads there are.
"""

import pytest
import torch
from neuron_attribution_server.model.capture.capture import SMALLEST_PASS
from neuron_attribution_server.model.loading import math_libraries
from torch.nn.functional import linear


@pytest.mark.parametrize(("read", "written"), [(576, 1536), (1536, 576), (576, 576), (576, 192)])
def test_rows_of_products_do_not_depend_on_their_number(read, written):
    """The demo model's matrices."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(written, read, generator=generator)
    rows = torch.randn(400, read, generator=generator)
    expected = linear(rows, weight)
    for count in range(SMALLEST_PASS, 400, 7):
        start = (400 - count) // 2
        part = slice(start, start + count)
        assert torch.equal(linear(rows[part], weight), expected[part]), f"{count} rows"


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("3200000 100000\n", 16),
    ],
)
def test_a_container_has_no_more_threads_than_its_quota_has_processors(monkeypatch, tmp_path, quota, threads):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(math_libraries, "_QUOTA", tmp_path / "cpu.max")
    assert math_libraries.most_threads(16) == threads
    monkeypatch.setattr(math_libraries, "_QUOTA", tmp_path / "nothing")
    assert math_libraries.most_threads(16) == 16
