"""What a graph says: its nodes in order, edges that add up, coverage, heads, and what is left out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import Subkey
from neuron_attribution.traces import MOST_EDGES, Graph, TraceNodeKind, TraceOptions
from neuron_attribution_server.model.engine.explanation.activity import Activity
from neuron_attribution_server.model.engine.tracer import ALWAYS_ON
from neuron_attribution_server.model.tracing.frozen.sweeps import Place
from neuron_attribution_server.model.tracing.pruning import KeptEdge, carried
from neuron_attribution_server.tasks.tasks import ExplainedToken, TraceTask
from reference.compared import Compared
from reference.tracing import Traced, traced

PROMPT = (3, 14, 15, 92, 65, 35)
LAST = len(PROMPT) - 1
TARGET, CONTRAST = 11, 60
NODES = 12


def test_a_graph_adds_up(tiny: Compared) -> None:
    """What is kept and what is left out are a node's activation; shares, order and coverage are what they say."""
    graph = trace(tiny, nodes=NODES, edge_share=0.6)
    kinds = [node.kind for node in graph.nodes]
    assert kinds[: 1 + NODES] == [TraceNodeKind.OUTPUT] + [TraceNodeKind.FFN_NEURON] * NODES
    assert [node.position for node in graph.nodes if node.kind is TraceNodeKind.TOKEN] == list(range(LAST + 1))
    found = traced(tiny.engine, PROMPT, [LAST], [TARGET])
    places = [Place(n.neuron.layer, n.neuron.index, n.position) for n in graph.nodes[1 : 1 + NODES]]
    edges = found.edges(places, places)
    relevance = found.relevances()
    assert [n.relevance for n in graph.nodes[1 : 1 + NODES]] == pytest.approx(
        found.relevance_of(relevance, places).tolist(), abs=1e-5
    )
    there = (torch.cat([edges.neurons, edges.tokens, edges.biases], 1) != 0).sum(1)
    total = 0.0
    for number, node in enumerate(graph.nodes[: 1 + NODES]):
        mine = [edge for edge in graph.edges if edge.target == number]
        sizes = [abs(edge.contribution) for edge in mine]
        assert sizes == sorted(sizes, reverse=True)
        assert len(mine) <= MOST_EDGES
        whole = float(edges.magnitudes[number])
        assert sum(sizes[:-1]) < 0.6 * whole
        assert sum(sizes) >= 0.6 * whole * (1 - 1e-6) or len(mine) == min(MOST_EDGES, int(there[number]))
        assert [edge.share for edge in mine] == pytest.approx([size / whole for size in sizes], rel=1e-4)
        assert sum(edge.contribution for edge in mine) + node.other == pytest.approx(node.activation, abs=1e-5 * whole)
        total += whole
    assert graph.coverage.edges == pytest.approx(sum(abs(e.contribution) for e in graph.edges) / total, rel=1e-4)
    straight = sum(edge.contribution for edge in graph.edges if edge.target == 0)
    assert graph.coverage.output_edges == pytest.approx(straight / graph.output, rel=1e-5)
    assert graph.coverage.neuron_positions == tiny.engine.facts.sizes.layers * 48 * len(PROMPT)
    assert (graph.coverage.screened, graph.coverage.measured) == (4 * NODES, 4 * NODES)
    assert all(len(node.projection.top) == 10 for node in graph.nodes[1 : 1 + NODES])


def test_a_whole_graph_carries_all_of_the_output(tiny: Compared) -> None:
    """With every neuron in it and hardly any cut, paths from tokens and biases are the output."""
    graph = trace(tiny, nodes=3 * 48 * len(PROMPT), screened=3 * 48 * len(PROMPT), edge_share=1.0, measure=False)
    kept = [KeptEdge(edge.source - 1, edge.target, edge.contribution, edge.share) for edge in graph.edges]
    neurons = [node for node in graph.nodes if node.kind is TraceNodeKind.FFN_NEURON]
    paths = carried(kept, [graph.output, *(n.activation for n in neurons)], [n.neuron.layer for n in neurons])
    assert paths / graph.output == pytest.approx(graph.coverage.output_paths, rel=1e-5)
    found = traced(tiny.engine, PROMPT, [LAST], [TARGET])
    places = [place for place in found.places if float(found.activations([place])[0])]
    edges = found.edges(places, places)
    everything = torch.cat([edges.neurons, edges.tokens, edges.biases], 1).double().tolist()
    every = [KeptEdge(s, t, value, 0.0) for t, row in enumerate(everything) for s, value in enumerate(row) if value]
    activations = [found.value, *found.activations(places).tolist()]
    assert carried(every, activations, [place.layer for place in places]) == pytest.approx(found.value, rel=1e-3)


def test_heads_are_those_whose_paths_carry_most(tiny: Compared) -> None:
    """Against the frozen model with the weights of all heads but one at zero, head by head."""
    graph = trace(tiny, nodes=NODES, heads=True)
    found = traced(tiny.engine, PROMPT, [LAST], [TARGET])
    moving = [edge for edge in graph.edges if edge.head is not None]
    assert len(moving) > 10
    for edge in graph.edges:
        source, target = graph.nodes[edge.source], graph.nodes[edge.target]
        moves = source.position is not None and source.position != (LAST if not edge.target else target.position)
        assert moves or edge.head is None
    places = [Place(n.neuron.layer, n.neuron.index, n.position) for n in graph.nodes[1 : 1 + NODES]]
    count = len(found.frozen.layers)
    alone: dict[tuple[int, int], torch.Tensor] = {}
    for layer, head in itertools.product(range(count), range(4)):
        edges = only(found, layer, head).edges(places, places)
        alone[layer, head] = torch.cat([edges.neurons, edges.tokens], 1)
    for edge in moving:
        column = edge.source - 1
        carries = {key: float(given[edge.target, column]) for key, given in alone.items()}
        strongest = max(carries, key=lambda key: abs(carries[key]))
        assert (edge.head.layer, edge.head.head) == strongest
        assert edge.head_contribution == pytest.approx(carries[strongest], abs=1e-5, rel=1e-4)


def only(found: Traced, layer: int, head: int) -> Traced:
    """The same where one head alone attends."""
    layers = []
    for number, each in enumerate(found.frozen.layers):
        weights = torch.zeros_like(each.attention.weights)
        if number == layer:
            weights[head] = each.attention.weights[head]
        layers.append(replace(each, attention=replace(each.attention, weights=weights)))
    return replace(found, frozen=replace(found.frozen, layers=layers))


def test_what_is_on_whatever_is_asked_is_marked_and_left_out(tiny: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of contexts in which every neuron of the lower half of each layer is huge at either sign's expense."""
    layers, width = tiny.engine.facts.sizes.layers, 48
    coefficients = torch.zeros(4, layers, width, dtype=torch.float16)
    coefficients[:2, :, : width // 2], coefficients[2:, :, : width // 2] = 100, -100
    activity = Activity(tiny.engine._view, coefficients, coefficients)
    monkeypatch.setattr(tiny.engine._tracer, "_activity", activity)
    usual = [node for node in trace(tiny, nodes=NODES).nodes if node.neuron]
    assert any(node.always_on for node in usual)
    for node in usual:
        assert node.always_on == (node.neuron.index < width // 2) == (node.activity >= ALWAYS_ON)
    graph = trace(tiny, nodes=NODES, leave_out_always_on=True)
    assert graph.coverage.screened == 4 * NODES
    assert all(node.neuron.index >= width // 2 for node in graph.nodes if node.neuron)


def test_without_measuring_the_gradient_decides(tiny: Compared) -> None:
    graph = trace(tiny, nodes=NODES, measure=False, projection_top_k=0)
    found = [node for node in graph.nodes if node.neuron]
    sizes = [abs(node.gradient) for node in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found) == NODES
    assert {node.effect for node in found} == {node.projection for node in found} == {None}
    assert graph.coverage.measured == 0
    measured = trace(tiny, nodes=NODES, screened=NODES)
    assert {(n.neuron, n.position) for n in found} == {(n.neuron, n.position) for n in measured.nodes if n.neuron}


def test_contrasts_and_spans_are_what_they_say(tiny: Compared) -> None:
    """A logit difference is exactly that where the final norm adds nothing; the model's own tokens stand in."""
    explained = (ExplainedToken(2, PROMPT[3]), ExplainedToken(LAST))
    task = TraceTask(token_ids=PROMPT, explained=explained, contrast=CONTRAST, options=TraceOptions(nodes=5))
    (outcome,) = tiny.engine.run([task])
    graph = outcome.graph
    assert graph.positions == (2, LAST)
    assert graph.targets[0].token.id == PROMPT[3]
    assert graph.targets[1].rank == 1
    assert [each.token.id for each in graph.contrasts] == [CONTRAST] * 2
    difference = sum(a.log_probability - b.log_probability for a, b in zip(graph.targets, graph.contrasts, strict=True))
    assert graph.log_odds == pytest.approx(difference, abs=1e-4)
    if tiny.name == "llama":
        assert graph.output == pytest.approx(graph.log_odds, abs=1e-4)


def test_a_gate_that_is_not_there_is_refused(tiny: Compared) -> None:
    (outcome,) = tiny.engine.run(
        [TraceTask(token_ids=PROMPT, explained=(ExplainedToken(LAST),), options=TraceOptions(subkey=Subkey.GATE))]
    )
    if tiny.engine._view.gated:
        assert outcome.graph.output
    else:
        assert isinstance(outcome, FailedPreconditionError)


def trace(tiny: Compared, **options: object) -> Graph:
    task = TraceTask(token_ids=PROMPT, explained=(ExplainedToken(LAST, TARGET),), options=TraceOptions(**options))
    (outcome,) = tiny.engine.run([task])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.graph
