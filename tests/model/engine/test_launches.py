"""What a batch asks of a device: a tensor program whose launches do not grow with its requests, nor its waits at all.

Counted on a CPU that is taken for a device, so that it goes the device's ways.
"""

from __future__ import annotations

import pytest
from examples import few
from neuron_attribution.requests import Aggregate, AttributeOptions, Direction
from neuron_attribution_server.model.attribution import host
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import SUMMED_PARTS, AttributeTask, ExplainedToken
from reference.adversaries import Recipe, cook
from reference.compare_answers import assert_same
from reference.counted_operations import CountedOperations

EVERYTHING = AttributeOptions()
BOTH_ENDS = AttributeOptions(direction=Direction.BOTH, position_projection_top_k=3)
MOST_WAITS = 16


@pytest.fixture(autouse=True)
def _a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is nobody's host."""
    monkeypatch.setattr(host, "HOST", "none")


@pytest.fixture(scope="module")
def engines() -> dict[int, Engine]:
    """Engines of models of several layers."""
    return {layers: engine_from(cook(Recipe("llama", layers, 24, 60, seed=3))) for layers in (3, 9)}


def tasks(count: int, options: AttributeOptions, first_lengths: tuple[int, ...] = ()) -> list[AttributeTask]:
    """Prompts of twenty tokens, or of other lengths first."""
    lengths = [*first_lengths, *[20] * (count - len(first_lengths))]
    return [
        AttributeTask(
            token_ids=tuple((7 * index + place) % 60 for place in range(length)),
            explained=(ExplainedToken(length - 1),),
            options=options,
        )
        for index, length in enumerate(lengths)
    ]


def counted(engine: Engine, batch: list[AttributeTask]) -> CountedOperations:
    """What a batch takes."""
    with CountedOperations() as found:
        outcomes = engine.run(batch)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    return found


@pytest.mark.parametrize("options", few([EVERYTHING, BOTH_ENDS]), ids=few(["everything", "both ends"]))
def test_launches_do_not_grow_with_the_requests_nor_waits_with_anything(
    engines: dict[int, Engine], options: AttributeOptions
) -> None:
    most = MOST_WAITS + (4 if options is BOTH_ENDS else 0)  # position projections, and searches of decreases
    for engine in engines.values():
        counted(engine, tasks(1, options))  # what is made once
        alone, together = (counted(engine, tasks(count, options)) for count in (1, 16))
        assert together.operations <= 1.5 * alone.operations
        assert max(alone.waits, together.waits) <= most, together.by_wait


@pytest.mark.parametrize("other", few([(), (1, 2, 3)]), ids=few(["an answer", "two answers"]))
def test_launches_do_not_grow_with_the_tokens_of_an_answer(engines: dict[int, Engine], other: tuple[int, ...]) -> None:
    """Explained together alone; their sums add a few waits."""
    options = AttributeOptions(
        parts=SUMMED_PARTS, direction=Direction.BOTH, aggregate=Aggregate.SUM, aggregate_only=True
    )

    def answer(count: int) -> AttributeTask:
        explained = tuple(ExplainedToken(3 + place, (5 * place) % 60) for place in range(count))
        ids = tuple((7 * place) % 60 for place in range(4 + count))
        return AttributeTask(token_ids=ids, explained=explained, contrast_answer=other, options=options)

    for engine in engines.values():
        counted(engine, [answer(1)])  # what is made once
        short, long = (counted(engine, [answer(count)]) for count in (2, 16))
        assert long.operations <= 1.2 * short.operations
        assert max(short.waits, long.waits) <= MOST_WAITS + 4, long.by_wait


@pytest.mark.parametrize("options", [EVERYTHING, BOTH_ENDS], ids=["everything", "both ends"])
def test_a_device_gives_the_answers_of_the_host(
    engines: dict[int, Engine], monkeypatch: pytest.MonkeyPatch, options: AttributeOptions
) -> None:
    """Sequences of several lengths, with several explained tokens."""
    batch = tasks(5, options, first_lengths=(3, 17, 8))
    several = tuple(ExplainedToken(position) for position in (4, 9, 16))
    batch.append(AttributeTask(token_ids=tuple(range(20, 40)), explained=several, options=options))
    elsewhere = engines[3].run(batch)
    monkeypatch.setattr(host, "HOST", "cpu")
    for got, wanted in zip(elsewhere, engines[3].run(batch), strict=True):
        for one, other in zip(got.explanations, wanted.explanations, strict=True):
            assert_same(one, other, tolerance=1e-5)
