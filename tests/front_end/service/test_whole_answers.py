"""Whole answers through the service: what reaches the engine, and what comes back."""

from dataclasses import replace

import pytest
from neuron_attribution import Client
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import Aggregate, AttributeOptions, AttributeRequest, Part
from neuron_attribution_server.front_end.service.task_sizes import answer_bytes
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.model.engine.passes import places_of, rows_of, sequences_of
from neuron_attribution_server.tasks.tasks import SUMMED_PARTS, AttributeTask, ExplainedToken
from service.fakes import FACTS, PROMPT, SIZES, TOKENIZER, FakeEngine
from service.servers import PATIENCE, running_server

ANSWER, OTHER = " Paris is", " Rome"


@pytest.fixture(scope="module")
def engine():
    with FakeEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with running_server(ThreadWorker(engine), maximum_explained_tokens=4) as server, Client(server.address) as client:
        assert server.loaded.wait(PATIENCE)
        yield client


def test_an_aggregate_comes_beside_the_explanations_or_instead_of_them(client, engine):
    got = client.attribute(PROMPT, completion=ANSWER, aggregate="sum")
    assert (len(got.explanations), got.aggregate.aggregate) == (2, Aggregate.SUM)
    assert [each.token.text for each in got.aggregate.targets] == [" Paris", " is"]
    assert not got.aggregate.contrast_targets
    alone = client.attribute(PROMPT, completion=ANSWER, aggregate="mean", aggregate_only=True)
    assert (alone.explanations, alone.aggregate.aggregate) == ((), Aggregate.MEAN)
    assert alone.tokens == got.tokens
    assert client.attribute(PROMPT, completion=ANSWER).aggregate is None
    assert [task.options.parts == SUMMED_PARTS for (task,) in engine.batches[-3:]] == [False, True, False]


def test_another_answer_is_a_second_sequence(client, engine):
    got = client.attribute(PROMPT, completion=ANSWER, contrast_completion=OTHER, aggregate="sum")
    assert [each.token.text for each in got.aggregate.contrast_targets] == [" Rome"]
    [task] = engine.batches[-1]
    (first, second), (place,) = sequences_of(task), places_of([task])
    prompt = TOKENIZER.ids(PROMPT, None)
    assert first.token_ids == prompt + TOKENIZER.continuation(ANSWER) == tuple(each.id for each in got.tokens)
    assert second.token_ids == prompt + TOKENIZER.continuation(OTHER)
    last = len(prompt) - 1
    assert (first.positions, second.positions) == ((last, last + 1), (last,))
    rows = rows_of(task, place)
    assert [(row.sequence, row.position, row.target, row.explained) for row in rows] == [
        *((0, last + n, token, True) for n, token in enumerate(TOKENIZER.continuation(ANSWER))),
        *((1, last + n, token, False) for n, token in enumerate(TOKENIZER.continuation(OTHER))),
    ]
    assert rows[0].whole.weights.tolist() == [1, 1, -1]
    assert (task.sequences, task.rows, task.explanations, task.length) == (2, 3, 2, len(first.token_ids))


def test_the_longer_answer_counts(client, engine):
    client.attribute(PROMPT, completion=OTHER, contrast_completion=ANSWER, aggregate="mean", aggregate_only=True)
    [task] = engine.batches[-1]
    assert task.length == len(task.prompt) + 2
    [place] = places_of([task])
    assert rows_of(task, place)[0].whole.weights.tolist() == [1, -0.5, -0.5]


def test_both_answers_count_against_what_may_be_explained(client):
    with pytest.raises(
        InvalidArgumentError, match="3 tokens beside 2 of the other answer is over the limit 2"
    ) as caught:
        client.attribute(PROMPT, completion=ANSWER, contrast_completion=" is" * 3, aggregate="sum")
    assert caught.value.violations[0].field == "contrast_completion"


def test_a_span_is_of_the_prompts_own_tokens(client, engine):
    got = client.attribute(PROMPT, span=(2, 4))
    assert [(each.position, each.target.token) for each in got.explanations] == [(1, got.tokens[2]), (2, got.tokens[3])]
    [task] = engine.batches[-1]
    assert task.token_ids == TOKENIZER.ids(PROMPT, None)
    assert task.in_prompt


def test_an_aggregate_comes_with_the_last_of_a_streams_tokens(client):
    items = [("k", AttributeRequest(PROMPT, completion=ANSWER, options=AttributeOptions(aggregate=Aggregate.SUM)))]
    first, last = client.attribute_stream(items, each_token=True)
    assert [len(each.result.explanations) for each in (first, last)] == [1, 1]
    assert first.result.aggregate is None
    assert len(last.result.aggregate.targets) == 2
    alone = replace(items[0][1], options=replace(items[0][1].options, aggregate_only=True))
    [only] = client.attribute_stream([("k", alone)], each_token=True)
    assert (only.result.explanations, len(only.result.aggregate.targets), only.remaining) == ((), 2, 0)


def test_the_same_question_is_answered_from_the_cache(client, engine):
    """What differs in any of its fields is another question."""
    asked = {"completion": ANSWER, "contrast_completion": OTHER, "aggregate": "sum", "top_k": 3}
    client.attribute(PROMPT, **asked)
    ran = len(engine.batches)
    assert client.attribute(PROMPT, **asked).timings.cached
    for other in ({"aggregate": "mean"}, {"aggregate_only": True}, {"contrast_completion": " The"}):
        assert not client.attribute(PROMPT, **(asked | other)).timings.cached
    assert len(engine.batches) == ran + 3


def test_an_answer_needs_room_for_what_its_tokens_do_together():
    options = AttributeOptions(aggregate=Aggregate.SUM, parts=frozenset({Part.FFN_VALUE_NEURONS}), projection_top_k=0)
    sizes = {}
    for count in (1, 3):
        explained = tuple(ExplainedToken(4 + n, 1) for n in range(count))
        task = AttributeTask(token_ids=(1,) * (5 + count), explained=explained, options=options)
        alone = replace(task, options=replace(options, aggregate_only=True))
        without = replace(task, options=replace(options, aggregate=None))
        assert answer_bytes(alone, SIZES) < answer_bytes(task, SIZES) > answer_bytes(without, SIZES)
        sizes[count] = answer_bytes(alone, SIZES)
    assert sizes[3] - sizes[1] > 2 * options.top_k * 8
    assert FACTS.memory.batch([task]) >= FACTS.memory.batch([without])
