"""The counter of a GPU's work counts what would be launched and what the host would wait for, on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.compare_answers import assert_same
from reference.compared import compare_tiny
from reference.counted_operations import CountedOperations

MATRIX = torch.arange(6.0).reshape(2, 3)
MASK = MATRIX > 2
NUMBERS = torch.tensor([0, 1])


def _counted(call: Callable[[], object]) -> tuple[int, int]:
    with torch.inference_mode(), CountedOperations() as counted:
        call()
    return counted.operations, counted.waits


def _set(index: torch.Tensor, value: float | torch.Tensor) -> None:
    MATRIX.clone()[index] = value


@pytest.mark.parametrize(
    ("call", "operations"),
    [
        (lambda: MATRIX[1].unsqueeze(0).expand(4, 3), 0),
        (lambda: torch.empty(3), 0),
        (lambda: MATRIX.mT.reshape(6), 1),
        (lambda: torch.nn.functional.linear(MATRIX, MATRIX), 1),
        (lambda: MATRIX.softmax(-1).topk(2), 2),
        (lambda: MATRIX[NUMBERS], 1),
        (lambda: _set(MASK, 1.0), 2),
        (lambda: MATRIX.masked_fill(MASK, 0.0), 1),
        (lambda: NUMBERS.repeat_interleave(NUMBERS + 1, output_size=3), 3),
        (MATRIX.float, 0),
        (MATRIX.double, 1),
    ],
)
def test_what_is_launched_without_a_wait(call: Callable[[], object], operations: int) -> None:
    assert _counted(call) == (operations, 0)


@pytest.mark.parametrize(
    "call",
    [
        MATRIX[0, 0].item,
        lambda: float(MATRIX[0, 0]),
        lambda: [7, 8][NUMBERS[1]],
        MATRIX.tolist,
        MATRIX.numpy,
        lambda: np.asarray(MATRIX),
        MASK.nonzero,
        lambda: torch.where(MASK),
        lambda: MATRIX[MASK],
        lambda: _set(MASK, torch.ones(3)),
        lambda: MATRIX.masked_select(MASK),
        NUMBERS.unique,
        NUMBERS.bincount,
        lambda: torch.equal(MATRIX, MATRIX),
        lambda: NUMBERS.repeat_interleave(NUMBERS),
    ],
)
def test_what_the_host_waits_for(call: Callable[[], object]) -> None:
    assert _counted(call)[1] == 1


def test_what_the_host_has_is_read_and_computed_with_at_will() -> None:
    def read() -> None:
        here = MATRIX.cpu()
        assert [*here[0].tolist(), *here.view(-1)[3:].numpy()] == [0, 1, 2, 3, 4, 5]
        made = torch.arange(3) * 2
        assert [int(made[1]), *(here + made)[0].nonzero().tolist()[0]] == [2, 1]

    assert _counted(read) == (0, 1)
    assert _counted(lambda: (MATRIX.cpu(), MATRIX.tolist())) == (0, 2)


def test_what_goes_to_the_device_is_the_devices() -> None:
    assert _counted(lambda: torch.arange(3, device="cpu").tolist()) == (1, 1)
    assert _counted(lambda: torch.arange(3).to(MATRIX.device).tolist()) == (0, 1)
    assert _counted(lambda: torch.arange(3.0).add(MATRIX).tolist()) == (1, 1)


def test_a_wait_is_named_by_the_line_that_asks_and_answers_are_what_they_are() -> None:
    tiny = compare_tiny("llama")
    task = AttributeTask(token_ids=(3, 1, 4), explained=(ExplainedToken(2, 7),))
    (plain,) = tiny.engine.run([task])
    with CountedOperations() as counted:
        (outcome,) = tiny.engine.run([task])
    for got, wanted in zip(outcome.explanations, plain.explanations, strict=True):
        assert_same(got, wanted, tolerance=0.0)
    assert counted.operations > 100
    assert counted.waits > 0
    assert any(".py:" in wait for wait in counted.by_wait)
    before = counted.operations
    tiny.engine.run([task])
    assert counted.operations == before
    counted.reset()
    assert counted.operations == counted.waits == 0
