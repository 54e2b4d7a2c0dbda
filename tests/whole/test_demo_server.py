"""The main job on the real model: a server process, the command line and concurrent clients over a real port."""

import asyncio
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from google.protobuf import json_format
from neuron_attribution import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidArgumentError,
    NeuronAttributionError,
    NotFoundError,
)
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from service.demo_server import run, serving

PROMPT = "The capital of France is"
PROMPTS = (
    "London is the capital of",
    "The sun",
    "People in Mexico speak",
    "The capital of Japan is",
    "Water is made of hydrogen and",
    "The opposite of hot is",
    "The largest planet in the solar system is",
    "Two plus two equals",
    "The Eiffel Tower is located in the city of",
    "In 1969, the first man walked on the",
    "Toulouse belongs to the continent of",
    "My favourite colour is",
    "The author of Romeo and Juliet, who was born in Stratford-upon-Avon, was William",
    "To be or not to be, that is the",
    "Once upon a time, in a small village at the foot of a high mountain, there lived an old",
    "Michio Kaku works in the area of theoretical",
)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def address(demo_server):
    return demo_server.address


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


def answer(address, *arguments):
    """The command's JSON; nothing else may stand on standard output."""
    finished = run(*arguments, "--json", address=address)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_attribute_prints_the_contract_as_canonical_json(address):
    text = answer(address, "attribute", PROMPT, "--contrast", " London", "--neuron", "24.1005")
    response = json_format.Parse(text, messages.AttributeResponse())
    (explanation,) = response.explanations
    assert explanation.target.token.text == " Paris"
    assert explanation.contrast.token.text == " London"
    assert explanation.position == 4
    assert [token.text for token in response.tokens] == ["The", " capital", " of", " France", " is"]
    assert len(explanation.layers.attention) == len(explanation.layers.ffn) == 30
    assert list(explanation.head_scores.shape) == [30, 9]
    assert [len(head.position_scores) for head in explanation.heads] == [5] * 10
    for ranking in (explanation.ffn_value_neurons, explanation.attention_value_neurons, explanation.query_ffn_neurons):
        assert len(ranking.neurons) == 10
        assert all(len(neuron.projection.top) == len(neuron.projection.bottom) == 10 for neuron in ranking.neurons)
        assert ranking.coverage.exact
    assert len(explanation.ffn_query_layers.layers) == len(explanation.attention_query_layers.layers) == 61
    assert explanation.neurons[0].neuron.ffn.index == 1005
    assert (response.model.name, response.model.dtype) == ("SmolLM2-135M-Instruct", "float32")
    assert response.timings.batch_tokens == 5


def test_attribute_prints_tables_for_people(address):
    finished = run("attribute", PROMPT, address=address)
    assert finished.returncode == 0
    for heading in ("FFN value neurons", "attention value neurons", "heads", "strongest layers", "query FFN neurons"):
        assert heading in finished.stdout
    assert "' Paris'" in finished.stdout
    assert "' capitals'" in finished.stdout


def test_the_story_of_the_readme(client):
    """Ten neurons zeroed turn " Sydney" into " Canberra"."""
    prompt = "The capital of Australia is"
    why = client.attribute(prompt, contrast=" Canberra").explanations[0]
    assert why.target.token.text == " Sydney"
    neurons = [score.neuron for score in why.ranking("ffn_value_neurons").neurons]
    [best, *_] = client.intervene(prompt, zero=neurons).results[0].after.predictions
    assert best.token.text == " Canberra"
    assert best.probability > 0.8


def test_a_forgotten_space_is_told(address):
    finished = run("attribute", PROMPT, "--target", "Paris", "--parts", "heads", address=address)
    assert "' Paris' ranks 1: --target ' Paris' explains that one" in finished.stdout
    assert "  23.h4" not in finished.stdout.partition("heads")[0]
    assert finished.stdout.partition("heads")[2].count(".h") == 10


@pytest.mark.parametrize(
    "arguments", [["24.1005"], ["10.3.20"], ["2.17", "--through", "15.3"], ["--side=subkey", "1.2"]]
)
def test_project_answers(address, arguments):
    (projection,) = json.loads(answer(address, "project", *arguments))["projections"]
    assert len(projection["projection"]["top"]) == 10


def test_model_and_tokenize_answer(address):
    model = json.loads(answer(address, "model"))
    assert (model["family"], model["sizes"]["layers"], model["sizes"]["vocabulary"]) == ("llama", 30, 49152)
    assert all(each["error"] <= each["tolerance"] for each in model["invariants"])
    tokens = json.loads(answer(address, "tokenize", " Paris"))["tokens"]
    assert [token["token"]["text"] for token in tokens] == [" Paris"]


def test_a_prompt_of_a_thousand_tokens_works(client):
    sentence = "The river that flows through the old town is very long and very wide. "
    result = client.attribute(sentence * 67 + "The capital of France is")
    assert len(result.tokens) > 1000
    assert abs(result.explanations[0].layers.remainder) < 1e-3
    assert len(result.explanations[0].heads[0].position_scores) == len(result.tokens)


def test_batched_equals_single(address):
    """Sixteen prompts sent at once get the answers they get alone."""
    with Client(address) as client:
        alone = [client.attribute(prompt).explanations[0] for prompt in PROMPTS]

    async def together():
        async with AsyncClient(address) as client:
            return await asyncio.gather(*[client.attribute(prompt) for prompt in PROMPTS])

    batched = asyncio.run(together())
    assert max(result.timings.batch_requests for result in batched) > 1
    for expected, result in zip(alone, batched, strict=True):
        assert_same(expected, result.explanations[0])


def assert_same(expected, got):
    assert got.target.token == expected.target.token
    for name in ("attention", "ffn"):
        assert_close(getattr(got.layers, name), getattr(expected.layers, name))
    assert_close(got.head_scores, expected.head_scores)
    for name in ("ffn_value_neurons", "attention_value_neurons", "query_ffn_neurons"):
        assert_close(*[np.array([n.score for n in getattr(each, name).neurons]) for each in (got, expected)])


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_clients_share_a_forward_pass(address):
    """While the first of eight is at work the others come, and then run as one batch."""
    together = threading.Barrier(8)

    def ask(number):
        with Client(address) as client:
            client.get_model()  # it is connected
            together.wait()
            return client.attribute(f"The number {number} is", parts=["layers"]).timings.batch_requests

    with ThreadPoolExecutor(8) as callers:
        assert max(callers.map(ask, range(8))) >= 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"target": " Parisianly"}, InvalidArgumentError, "tokens"),
        ({"target": 60_000}, InvalidArgumentError, "target"),
        ({"target": ""}, InvalidArgumentError, "target"),
        ({"prompt": ""}, InvalidArgumentError, "prompt"),
        ({"prompt": "word " * 9000}, InvalidArgumentError, "prompt"),
        ({"neurons": ["30.0"]}, InvalidArgumentError, "neurons[0]"),
        ({"neurons": ["0.9.0"]}, InvalidArgumentError, "neurons[0]"),
        ({"model": "gpt-5"}, NotFoundError, "SmolLM2-135M-Instruct"),
    ],
)
def test_bad_input_is_refused_and_the_next_request_is_served(client, arguments, error, words):
    with pytest.raises(error) as refused:
        client.attribute(**{"prompt": PROMPT} | arguments)
    assert words in refused.value.message
    assert client.attribute(PROMPT, parts=["layers"]).explanations[0].target.token.text == " Paris"


def test_a_stop_signal_ends_the_server_cleanly():
    with serving() as (_, process):
        process.terminate()
        assert process.wait(30) == 0


LONG_TEXT = " one two three four five six seven eight nine ten eleven twelve"
PATIENCE = 120


def test_what_would_take_a_worker_too_long_is_refused_with_what_would_not(client):
    """It used to run past the time of a batch, to be run again, and to kill the worker twice.

    One token may take a tenth of the limit and all of them several times as long as it, on two cores.
    """
    dear = {"scoring_method": "coefficient-reciprocal-rank", "top_k": 1000, "projection_top_k": 0}
    with pytest.raises(InvalidArgumentError) as refused:
        client.attribute(PROMPT, completion=LONG_TEXT * 10, parts=["attention-value-neurons"], timeout=PATIENCE, **dear)
    assert refused.value.reason == "TAKES_TOO_LONG"
    [violation] = refused.value.violations
    advised = int(re.search(r"explain at most (\d+) tokens", violation.description)[1])
    assert violation.field == "completion"
    assert 1 <= advised < 120
    assert client.get_model().limits.request_seconds == 100


@contextmanager
def at_work(client, *arguments, **options):
    """While a long request runs; what became of it is awaited at the end."""
    outcomes = []

    def ask():
        try:
            outcomes.append(client.attribute(*arguments, **options))
        except NeuronAttributionError as error:
            outcomes.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield outcomes
    finally:
        asking.join()


def test_short_calls_go_first_while_a_long_request_runs_and_it_stops_when_nobody_waits(client, address):
    """Each used to wait for all of it; and what nobody waited for went on to its end."""
    long = {"exhaustive": True, "parts": ["ffn-value-neurons"], "projection_top_k": 0}
    began = time.monotonic()
    with Client(address) as other, at_work(client, "The sun", timeout=PATIENCE, **long) as outcomes:
        time.sleep(1.0)
        too_late = []
        for index in range(3):
            other.project_neuron(f"24.{index}", timeout=PATIENCE)
            too_late.append(bool(outcomes))
        other.attribute(PROMPT, parts=["layers"], timeout=PATIENCE)
        too_late.append(bool(outcomes))
    assert not any(too_late)
    whole = time.monotonic() - began
    assert outcomes[0].explanations[0].ffn_value_neurons.coverage.scored == 30 * 1536
    with pytest.raises(DeadlineExceededError):
        client.attribute("The moon", timeout=1.0, **long)
    began = time.monotonic()
    client.project_neuron("23.7", timeout=PATIENCE)
    client.attribute("The moon", parts=["ffn-value-neurons"], query_sources=100, timeout=PATIENCE)
    assert time.monotonic() - began < whole / 2
