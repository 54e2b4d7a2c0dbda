"""What runs at the checkpoints of a batch changes neither's answer, and what is stopped there leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from examples import few
from neuron_attribution.neurons import AttentionNeuron, Head
from neuron_attribution.requests import (
    AttributeOptions,
    Direction,
    Intervention,
    LayerPart,
    Scale,
    ScoringMethod,
    Side,
    Zero,
)
from neuron_attribution.traces import TraceOptions
from neuron_attribution_server.model.attribution.checkpoints import at_checkpoints
from neuron_attribution_server.tasks.tasks import (
    AttributeTask,
    ExplainedToken,
    InterveneTask,
    ProjectTask,
    Task,
    TraceTask,
)
from reference.compare_answers import assert_same
from reference.compared import Compared, compare_dissected, compare_tiny
from reference.tiny_families import tiny_family

PROMPT = (45, 73, 93, 18, 59, 56)
EDITED = (Intervention(Scale(-1.5), heads=(Head(1, 2),), layers=(LayerPart(1, "ffn"),)),)
INSIDE = AttributeTask(token_ids=(4, 8, 15), explained=(ExplainedToken(2),))


def attribution(**options: object) -> AttributeTask:
    explained = (ExplainedToken(3), ExplainedToken(5))
    return AttributeTask(token_ids=PROMPT, explained=explained, options=AttributeOptions(**options))


LONG: dict[str, Task] = {
    "both directions": attribution(direction=Direction.BOTH),
    "exhaustive": attribution(exhaustive=True),
    "ranks": attribution(scoring_method=ScoringMethod.COEFFICIENT_RECIPROCAL_RANK, direction=Direction.BOTH),
    "intervened": attribution(interventions=EDITED),
    "generated": AttributeTask(token_ids=PROMPT, generate=3, options=AttributeOptions(interventions=EDITED)),
    "contrast": AttributeTask(token_ids=PROMPT, explained=(ExplainedToken(5),), contrast=3),
    "interventions": InterveneTask(
        token_ids=PROMPT, sets=(EDITED, (Intervention(Zero(), heads=(Head(0, 1),)),)), generate=3
    ),
    "traced": TraceTask(
        token_ids=PROMPT,
        explained=(ExplainedToken(3), ExplainedToken(5)),
        options=TraceOptions(nodes=4, screened=200, heads=True),
    ),
    "projections": ProjectTask(
        neurons=tuple(AttentionNeuron(1, 1, index) for index in range(8)), side=Side.SUBKEY, top_k=3
    ),
}


class Inside:
    """Runs a batch at every so manieth checkpoint of another one, and keeps the answers."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._seen = 0
        self._busy = False
        self.answers: list[object] = []

    def __call__(self) -> None:
        self._seen += 1
        if self._busy or self._seen % 3:
            return
        self._busy = True
        self.answers.append(self._run())
        self._busy = False


@pytest.fixture(scope="module", params=few(["llama", "gpt2", "mixtral"]))
def model(request: pytest.FixtureRequest) -> Compared:
    return (
        compare_dissected(tiny_family("mixtral"), "mixtral")
        if request.param == "mixtral"
        else compare_tiny(request.param)
    )


def answer(model: Compared, task: Task) -> object:
    [outcome] = model.engine.run([task])
    return outcome


def same(one: object, other: object) -> None:
    """Explanations, states of predictions and projections to the last bit; times apart."""
    if hasattr(one, "explanations"):
        for got, wanted in zip(one.explanations, other.explanations, strict=True):
            assert_same(got, wanted, tolerance=0.0)
    elif hasattr(one, "results"):
        assert (one.before, one.results) == (other.before, other.results)
    elif hasattr(one, "graph"):
        assert (one.graph.nodes, one.graph.edges) == (other.graph.nodes, other.graph.edges)
    else:
        assert one.projections == other.projections


@pytest.mark.parametrize("kind", few(LONG, 4))
def test_a_batch_inside_another_changes_neither(model: Compared, kind: str) -> None:
    alone, inside = answer(model, LONG[kind]), answer(model, INSIDE)
    listener = Inside(lambda: answer(model, INSIDE))
    with at_checkpoints(listener):
        interrupted = answer(model, LONG[kind])
    assert listener.answers
    same(interrupted, alone)
    for each in listener.answers:
        same(each, inside)


class Stop(BaseException):
    pass


def stopping(last: int) -> Callable[[], None]:
    left = iter(range(last))

    def look_up() -> None:
        if next(left, None) is None:
            raise Stop

    return look_up


@pytest.mark.parametrize("kind", few(LONG, 4))
def test_a_batch_that_is_stopped_anywhere_leaves_nothing_behind(model: Compared, kind: str) -> None:
    alone = answer(model, LONG[kind])
    for stop_at in (1, 2, 5):
        with at_checkpoints(stopping(stop_at)), pytest.raises(Stop):
            answer(model, LONG[kind])
        same(answer(model, LONG[kind]), alone)
