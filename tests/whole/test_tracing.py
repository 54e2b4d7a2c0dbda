"""Graphs of the demo model's predictions, from a real server: what they claim holds where others measure it."""

import asyncio
import json
import math
import re
from pathlib import Path

import jsonschema
import networkx
import pytest
from checkout import ROOT
from neuron_attribution import AsyncClient, Client
from neuron_attribution.cli.commands.trace import trace_lines
from neuron_attribution.traces import TraceNodeKind
from service.browsing import ask
from service.demo_server import run
from service.shown import assert_shown

PROMPT = "The capital of France is"
PAGE = ROOT / "docs" / "tracing.md"
SCHEMA = Path(__file__).parents[1] / "client" / "circuit_tracer_graph.json"


@pytest.fixture(scope="module")
def client(demo_server):
    with Client(demo_server.address) as client:
        yield client


@pytest.fixture(scope="module")
def trace(client):
    """As docs/tracing.md has it."""
    return client.trace(PROMPT, target=" Paris", nodes=30)


def log_odds(prediction):
    return prediction.log_probability - math.log1p(-prediction.probability)


def test_the_graph_is_about_what_was_asked(client, trace):
    graph = trace.graph
    (target,) = graph.targets
    predicted = client.attribute(PROMPT, target=" Paris", parts=["layers"])
    assert trace.tokens == predicted.tokens
    assert graph.positions == (predicted.explanations[0].position,)
    assert target.log_probability == pytest.approx(predicted.explanations[0].target.log_probability, abs=1e-4)
    assert graph.log_odds == pytest.approx(log_odds(target), abs=1e-3)
    neurons = [node for node in graph.nodes if node.kind is TraceNodeKind.FFN_NEURON]
    assert len(neurons) == 30
    assert graph.coverage.measured == graph.coverage.screened == 120
    assert graph.coverage.neuron_positions == 30 * 1536 * len(trace.tokens)
    effects = [abs(node.effect) for node in neurons]
    assert effects == sorted(effects, reverse=True)


def test_the_page_shows_what_the_command_prints(trace):
    lines = trace_lines(trace)
    paths = lines.index("strongest paths")
    assert_shown(lines[: paths + 8], "tracing.md")
    neurons = {str(node.neuron): node for node in trace.graph.nodes if node.neuron}
    table = re.findall(r"^\| ([\d.]+) \| (\d+) .*? \| (\S+) \| (\S+) \| (\S+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(table) == 5
    for name, position, *numbers in table:
        node = neurons[name]
        assert node.position == int(position)
        shown = [float(number.replace("\N{MINUS SIGN}", "-")) for number in numbers]
        assert [node.effect, node.gradient, node.relevance] == pytest.approx(shown, abs=2e-3)


def test_edges_and_what_is_left_out_sum_to_activations_and_relevances_to_the_output(trace):
    graph = trace.graph
    sums = {}
    for edge in graph.edges:
        sums[edge.target] = sums.get(edge.target, 0.0) + edge.contribution
    for index, node in enumerate(graph.nodes):
        if node.kind in (TraceNodeKind.OUTPUT, TraceNodeKind.FFN_NEURON):
            assert sums.get(index, 0.0) + node.other == pytest.approx(node.activation, abs=2e-3, rel=1e-3)
    sources = sum(node.relevance for node in graph.nodes if node.kind in (TraceNodeKind.TOKEN, TraceNodeKind.BIAS))
    assert sources == pytest.approx(graph.output, abs=1e-2)


def test_an_effect_is_what_intervening_shows(client, trace):
    """At the explained position, the only one at which Intervene changes a neuron alone."""
    last = trace.graph.positions[0]
    here = [node for node in trace.graph.nodes if node.neuron and node.position == last][:3]
    assert here
    for node in here:
        done = client.intervene(PROMPT, zero=[node.neuron], explained_position_only=True, target=" Paris")
        change = log_odds(done.before.target) - log_odds(done.results[0].after.target)
        assert node.effect == pytest.approx(change, abs=2e-3), node.name


def test_with_a_contrast_the_output_is_the_difference_of_two_logits(client):
    graph = client.trace(PROMPT, target=" Paris", contrast=" Lyon", nodes=5, measure=False).graph
    difference = graph.targets[0].log_probability - graph.contrasts[0].log_probability
    assert graph.log_odds == pytest.approx(difference, abs=1e-3)
    assert graph.output == pytest.approx(difference, abs=1e-2), "the frozen model is exact about it"
    assert all(node.effect is None for node in graph.nodes)


def test_both_clients_and_a_rerun_agree(demo_server, client):
    async def asking():
        async with AsyncClient(demo_server.address) as asynchronous:
            return await asynchronous.trace(PROMPT, nodes=5, heads=True)

    first, again = client.trace(PROMPT, nodes=5, heads=True), asyncio.run(asking())
    assert first.graph.nodes == again.graph.nodes
    assert first.graph.edges == again.graph.edges
    assert any(edge.head for edge in first.graph.edges)


def test_messages_are_followed_back_as_well(client):
    trace = client.trace(messages=[{"role": "user", "content": "The capital of France?"}], nodes=3, measure=False)
    assert len(trace.origins) == len(trace.tokens)
    assert {origin.role for origin in trace.origins} >= {"user"}


def test_every_form_of_the_command_line_is_read_by_what_it_is_for(demo_server):
    words = ("trace", PROMPT, "--target", " Paris", "--nodes", "5", "--screened", "5")
    text = run(*words, address=demo_server.address).stdout
    assert "' Paris'" in text
    assert "5 measured" in text
    printed = {
        form: json.loads(run(*words, "--format", form, address=demo_server.address).stdout)
        for form in ("node-link", "circuit-tracer")
    }
    jsonschema.validate(printed["circuit-tracer"], json.loads(SCHEMA.read_text()))
    graph = networkx.node_link_graph(printed["node-link"], edges="edges")
    assert networkx.is_directed_acyclic_graph(graph)
    assert "output" in graph


def test_over_http_it_is_the_same(demo_server, client):
    address = demo_server.page.removeprefix("http://").strip("/")
    status, _, answer = ask(address, "trace", {"prompt": {"text": PROMPT}, "nodes": 3, "measure": False})
    assert status == 200
    neurons = [node for node in answer["nodes"] if node["kind"] == "TRACE_NODE_KIND_FFN_NEURON"]
    expected = client.trace(PROMPT, nodes=3, measure=False).graph.nodes[1:4]
    assert [(each["neuron"]["layer"], each["neuron"]["index"]) for each in neurons] == [
        (node.neuron.layer, node.neuron.index) for node in expected
    ]
