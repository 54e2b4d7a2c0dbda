"""What bit for bit equal answers rest on: a row of a matrix product does not depend on how many rows there are."""

import pytest
import torch
from neuron_attribution_server.model.capture.capture import SMALLEST_PASS
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
