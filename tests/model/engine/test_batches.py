"""A request's answer does not depend on its batch, nor on when it is asked."""

from __future__ import annotations

import random
from dataclasses import replace

import neuron_attribution_server.model.engine.engine as engine_module
import pytest
import torch
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.requests import AttributeOptions, Direction, Intervention
from neuron_attribution_server.model.attribution.checkpoints import at_checkpoints
from neuron_attribution_server.model.capture.captured import CapturedStates
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, ProjectTask
from reference.compare_answers import assert_same
from reference.compare_explanations import assert_explanation
from reference.compared import Compared, compare_tiny
from reference.tiny_models import VOCABULARY

PROMPTS = 16
LONGEST = 20
OPTIONS = AttributeOptions(direction=Direction.BOTH, query_sources=20)


@pytest.fixture(scope="module")
def tasks() -> list[AttributeTask]:
    """Prompts of mixed lengths; some explain several positions, some generate, some contrast."""
    generator = random.Random(7)
    tasks = []
    for number in range(PROMPTS):
        length = 1 + generator.randrange(LONGEST)
        ids = tuple(generator.randrange(VOCABULARY) for _ in range(length))
        explained = [ExplainedToken(length - 1, None if number % 3 else generator.randrange(VOCABULARY))]
        if length > 2 and number % 4 == 0:
            explained.insert(0, ExplainedToken(length // 2, generator.randrange(VOCABULARY)))
        contrast = generator.randrange(VOCABULARY) if number % 5 == 4 else None
        tasks.append(AttributeTask(token_ids=ids, explained=tuple(explained), contrast=contrast, options=OPTIONS))
    return tasks


def test_batched_equals_single(tiny: Compared, tasks: list[AttributeTask]) -> None:
    batched = tiny.engine.run(tasks)
    for task, outcome in zip(tasks, batched, strict=True):
        alone = tiny.explain(task)
        assert outcome.token_ids == task.token_ids
        assert len(outcome.explanations) == len(alone) == len(task.explained)
        for got, other in zip(outcome.explanations, alone, strict=True):
            assert_same(got, other)


def test_a_batch_of_several_passes_is_answered_as_one_of_one(
    tiny: Compared, tasks: list[AttributeTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one pass would take long, several do, and what waits may go first between them."""
    sets = tuple((Intervention(neurons=(FfnNeuron(1, index),)),) for index in range(5))
    reruns = InterveneTask(token_ids=(4, 8, 15), sets=sets)
    whole, seen = tiny.engine.run([*tasks, reruns]), []
    monkeypatch.setattr(tiny.engine, "_pass_tokens", 2 * LONGEST)
    calls = calls_of(monkeypatch, engine_module, "capture")
    with at_checkpoints(lambda: seen.append(len(calls))):
        *parts, rerun = tiny.engine.run([*tasks, reruns])
    for one, other in zip(parts, whole[:-1], strict=True):
        for got, wanted in zip(one.explanations, other.explanations, strict=True):
            assert_same(got, wanted)
    assert (rerun.before, rerun.results) == (whole[-1].before, whole[-1].results)
    assert len(calls) > 5
    assert set(range(len(calls))) <= set(seen)
    calls.clear()
    monkeypatch.setattr(tiny.engine, "_pass_tokens", 2 * reruns.length)
    [alone] = tiny.engine.run([reruns])
    assert (alone.before, alone.results) == (rerun.before, rerun.results)
    assert [len(ids) for _, ids, *_ in calls] == [2, 2, 2]


def calls_of(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[tuple[object, ...]]:
    """The arguments that a function is called with from now on."""
    function, calls = getattr(module, name), []

    def noted(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, noted)
    return calls


def test_batched_equals_the_oracle(tiny: Compared, tasks: list[AttributeTask]) -> None:
    for task, outcome in zip(tasks, tiny.engine.run(tasks), strict=True):
        oracle = tiny.oracle(task.token_ids)
        for got, token in zip(outcome.explanations, task.explained, strict=True):
            assert_explanation(got, oracle.explain(token.position, token.target, task.contrast), task.options)


def test_a_second_run_gives_the_same_to_the_last_bit(tiny: Compared, tasks: list[AttributeTask]) -> None:
    first, second = tiny.engine.run(tasks), tiny.engine.run(tasks)
    for one, other in zip(first, second, strict=True):
        for got, again in zip(one.explanations, other.explanations, strict=True):
            assert_same(got, again, tolerance=0.0)


def test_outcomes_follow_the_order_of_tasks(tiny: Compared, tasks: list[AttributeTask]) -> None:
    """Projections and generations among attributions, each answer in its place."""
    projection = ProjectTask(neurons=(FfnNeuron(1, 5),))
    generation = AttributeTask(token_ids=(4, 8, 15), generate=2, options=OPTIONS)
    mixed = [projection, tasks[0], generation, projection, tasks[1]]
    outcomes = tiny.engine.run(mixed)
    assert not [outcome for outcome in outcomes if isinstance(outcome, NeuronAttributionError)]
    assert outcomes[0].projections == outcomes[3].projections
    assert [outcomes[i].token_ids for i in (1, 4)] == [tasks[0].token_ids, tasks[1].token_ids]
    assert len(outcomes[2].explanations) == 2
    for got, other in zip(outcomes[2].explanations, tiny.explain(generation), strict=True):
        assert_same(got, other)


def test_outcomes_tell_of_their_batch(tiny: Compared, tasks: list[AttributeTask]) -> None:
    for outcome in tiny.engine.run(tasks):
        assert outcome.batch_requests == len(tasks)
        assert outcome.batch_tokens == sum(task.tokens for task in tasks)
        assert outcome.forward > 0
        assert outcome.scoring > 0


def test_no_tasks_no_outcomes(tiny: Compared) -> None:
    assert tiny.engine.run([]) == []


def test_a_row_without_a_target_explains_its_most_probable_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside rows that have one, in groups of as many as are scored together."""
    llama = compare_tiny("llama")
    monkeypatch.setattr(engine_module, "rows_at_once", lambda _sizes: 2)
    prompt = (17, 4, 56, 60, 8)
    own, targeted = (
        AttributeTask(token_ids=prompt, explained=tuple(ExplainedToken(place, target) for place in range(3)))
        for target in (None, 5)
    )
    intervened = InterveneTask(token_ids=prompt, sets=((Intervention(heads=(Head(0, 0),)),),) * 9)
    outcomes = llama.engine.run([targeted, intervened, own, replace(own, reproducible=True), targeted])
    wanted = [int(token) for token in llama.model(torch.tensor([prompt])).logits[0, :3].argmax(-1)]
    targets = [[each.target.token.id for each in outcomes[index].explanations] for index in (0, 2, 3, 4)]
    assert targets == [[5] * 3, wanted, wanted, [5] * 3]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_kept_coefficients_are_those_that_would_be_computed_again(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Query neurons read both; a reproducible task computes its own, whatever is kept beside it."""
    tiny = compare_tiny(name)
    task = AttributeTask(token_ids=(3, 1, 4, 1, 5), explained=(ExplainedToken(4),), options=AttributeOptions(top_k=40))
    alone = replace(task, reproducible=True)
    computed = calls_of(monkeypatch, CapturedStates, "ffn_coefficients")
    kept = tiny.explain(task)
    assert not computed
    first = tiny.explain(alone)
    assert computed
    monkeypatch.setattr(engine_module, "KEPT_BYTES", 0)
    for got, want in zip(tiny.explain(task), kept, strict=True):
        assert_same(got, want)
    for got, want in zip(tiny.explain(alone), first, strict=True):
        assert_same(got, want, tolerance=0.0)
