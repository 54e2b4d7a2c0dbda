"""Calls that succeed, over a real port."""

import pytest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from service.fakes import ALL_BUT_QUERY_NEURONS, FACTS, PROMPT, TOKENIZER
from service.servers import PATIENCE, attribution


def texts(response):
    return [token.text for token in response.tokens]


def test_nothing_to_explain_means_the_models_own_next_token(server, engine):
    response = server.attribute()
    assert texts(response) == ["<bos>", "The", " capital", " of", " France", " is"]
    assert [explanation.position for explanation in response.explanations] == [5]
    [[task]] = engine.batches
    assert task.explained[0].target is None
    assert task.options.parts == frozenset(ALL_BUT_QUERY_NEURONS)


def test_special_tokens_are_the_callers_choice(server):
    prompt = messages.Prompt(text=PROMPT, add_special_tokens=False)
    assert texts(server.attribute(messages.AttributeRequest(prompt=prompt)))[0] == "The"


def test_a_target_by_text_keeps_its_leading_space(server, engine):
    server.attribute(attribution(target=messages.TokenChoice(text=" Paris")))
    [[task]] = engine.batches
    assert TOKENIZER.text(task.explained[0].target) == " Paris"


def test_a_target_without_a_space_is_watched_with_one_too(server, engine):
    """Which of the two was meant is for the answer to show; an id, or a text with a space, is meant as it is."""
    for choice, spaced in (({"text": "P"}, " P"), ({"text": " Paris"}, None), ({"id": 7}, None)):
        server.attribute(attribution(target=messages.TokenChoice(**choice)))
        [[task]] = engine.batches
        found = task.explained[0].spaced
        assert (None if found is None else TOKENIZER.text(found)) == spaced
        engine.batches.clear()


def test_a_completion_explains_each_of_its_tokens_at_the_position_before_it(server):
    response = server.attribute(attribution(completion=messages.Completion(text=" Paris is")))
    assert texts(response)[-2:] == [" Paris", " is"]
    assert [(e.position, e.target.token.text) for e in response.explanations] == [(5, " Paris"), (6, " is")]


def test_generation_leaves_the_tokens_to_the_engine(server, engine):
    server.attribute(attribution(generate=3))
    [[task]] = engine.batches
    assert (task.generate, task.explained, task.tokens) == (3, (), 9)


def test_timings_say_where_the_time_went(server):
    timings = server.attribute().timings
    assert timings.forward.ToMilliseconds() == 250
    assert timings.scoring.ToMilliseconds() == 500
    assert timings.tokenization.ToNanoseconds() > 0
    assert (timings.batch_requests, timings.batch_tokens) == (1, 6)


def test_projection_answers_in_the_requests_order(server):
    neurons = [
        messages.Neuron(attention=messages.AttentionNeuron(layer=1, head=3, index=7)),
        messages.Neuron(ffn=messages.FfnNeuron(layer=0, index=63)),
    ]
    response = server.stub.ProjectNeuron(messages.ProjectNeuronRequest(neurons=neurons), timeout=PATIENCE)
    assert [projection.neuron for projection in response.projections] == neurons


def test_tokenize_gives_byte_offsets(server):
    response = server.stub.Tokenize(messages.TokenizeRequest(text="é is"), timeout=PATIENCE)
    spans = [(item.token.text, item.start, item.end) for item in response.tokens]
    assert spans == [("<bos>", 0, 0), ("\ufffd", 0, 2), ("\ufffd", 0, 2), (" is", 2, 5)]


def test_get_model_describes_what_is_served(server):
    response = server.stub.GetModel(messages.GetModelRequest(model="fake"), timeout=PATIENCE)
    assert response.model.revision == "revision-1"
    assert response.limits.tokens == FACTS.maximum_tokens  # less than the configured limit
    assert [token.text for token in response.tokenizer.prefix] == ["<bos>"]
    assert response.version


@pytest.mark.parametrize(("given", "echoed"), [("abc-1", True), ("two words", False), ("x" * 200, False)])
def test_a_sane_request_id_is_echoed_and_another_one_replaced(server, given, echoed):
    _, call = server.stub.Attribute.with_call(attribution(), metadata=[("x-request-id", given)], timeout=PATIENCE)
    answered = dict(call.trailing_metadata())["x-request-id"]
    assert answered
    assert (answered == given) is echoed
