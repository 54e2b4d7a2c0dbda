"""Graphs of predictions: their paths, what they are in data frames, in networkx and for circuit-tracer's viewers."""

import builtins
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import networkx
import numpy as np
import pytest
from client.fake_service import TRACE
from google.protobuf.json_format import Parse
from neuron_attribution import convert
from neuron_attribution.cli.main import main
from neuron_attribution.graphs.circuit_tracer import cumulative_shares, node_influence, pairing, strongest
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import Span, Subkey
from neuron_attribution.traces import Graph, TraceEdge, TraceNode, TraceNodeKind, TraceOptions, TraceRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

SCHEMA = json.loads(Path(__file__).with_name("circuit_tracer_graph.json").read_text())
LAYERS, WIDTH, TOKENS = 4, 3, 3


def random_graph(seed: int) -> Graph:
    """Every neuron of a few layers reads every token and all neurons below; edges sum to activations."""
    random = np.random.default_rng(seed)
    tokens = [TraceNode(TraceNodeKind.TOKEN, 1.0, 0.0, position=position) for position in range(TOKENS)]
    neurons = [
        TraceNode(TraceNodeKind.FFN_NEURON, 0.0, 0.0, FfnNeuron(layer, index), position=index)
        for layer in range(LAYERS)
        for index in range(WIDTH)
    ]
    nodes = [TraceNode(TraceNodeKind.OUTPUT, 0.0, 0.0), *neurons, *tokens]
    edges = []
    for target, node in enumerate(nodes[: 1 + len(neurons)]):
        below = [
            place
            for place, other in enumerate(nodes)
            if other.kind is TraceNodeKind.TOKEN
            or (other.neuron and (node.neuron is None or other.neuron.layer < node.neuron.layer))
        ]
        given = random.normal(size=len(below)).tolist()
        total = sum(map(abs, given))
        edges += [
            TraceEdge(source, target, value, abs(value) / total) for source, value in zip(below, given, strict=True)
        ]
        nodes[target] = replace(node, activation=sum(given))
    return replace(TRACE.graph, nodes=tuple(nodes), edges=tuple(edges))


def all_paths(graph: Graph) -> dict[tuple[int, ...], tuple[float, float]]:
    """What every path from any node to the output carries, and its influence, by walking them all."""
    incoming = {}
    for edge in graph.edges:
        incoming.setdefault(edge.target, []).append(edge)
    found, open_paths = {}, [((0,), graph.nodes[0].activation, 1.0)]
    while open_paths:
        path, carried, influence = open_paths.pop()
        found[path] = carried, influence
        for edge in incoming.get(path[0], ()):
            through = carried * edge.contribution / graph.nodes[path[0]].activation
            open_paths.append(((edge.source, *path), through, influence * edge.share))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_strongest_paths_are_those_of_all_there_are(seed: int) -> None:
    graph = random_graph(seed)
    walked = all_paths(graph)
    whole = {path: each[0] for path, each in walked.items() if graph.nodes[path[0]].kind is TraceNodeKind.TOKEN}
    expected = sorted(whole, key=lambda path: -abs(whole[path]))[:10]
    found = graph.paths(10)
    assert [path.nodes for path in found] == expected
    np.testing.assert_allclose([path.contribution for path in found], [whole[path] for path in expected], rtol=1e-9)
    everything = sum(path.contribution for path in graph.paths(len(whole)))
    assert everything == pytest.approx(graph.nodes[0].activation), "paths of a whole graph carry the output"


@pytest.mark.parametrize("seed", range(3))
def test_influence_is_that_of_all_paths(seed: int) -> None:
    graph = random_graph(seed)
    expected = np.zeros(len(graph.nodes))
    for path, (_, influence) in all_paths(graph).items():
        expected[path[0]] += influence
    found = node_influence(graph)
    np.testing.assert_allclose([found[index] for index in range(len(graph.nodes))], expected, rtol=1e-9)


def test_a_graph_without_paths_has_none() -> None:
    lonely = replace(TRACE.graph, edges=())
    assert lonely.paths() == ()
    off = replace(lonely.nodes[1], activation=0.0)
    dead = replace(TRACE.graph, nodes=(TRACE.graph.nodes[0], off, *TRACE.graph.nodes[2:]))
    assert [path.nodes for path in dead.paths()] == [(3, 0)], "what is off carries nothing"


def test_the_paths_of_the_sample() -> None:
    """By hand: 4 x 1/4; 4 x 2/4 x .5/2, that of a neuron with a negative activation; 4 x 2/4 x 1/2 x 6/8."""
    assert [(path.nodes, path.contribution) for path in TRACE.graph.paths()] == [
        ((3, 0), 1.0),
        ((3, 2, 1, 0), 0.75),
        ((4, 1, 0), 0.5),
    ]


def test_json_is_the_answer() -> None:
    assert Parse(TRACE.to_json(), messages.TraceResponse()) == convert.trace_to_proto(TRACE)


def test_nodes_and_edges_are_rows() -> None:
    nodes, edges = TRACE.to_dataframe(), TRACE.edges_to_dataframe()
    assert list(nodes.component) == ["output", "1.17@2", "0.5@1", "token@1", "token@2", "biases@0"]
    neuron = nodes.iloc[1]
    assert (neuron.kind, neuron.layer, neuron["index"], neuron.position, neuron.token) == (
        "ffn-neuron",
        1,
        17,
        2,
        " is\n",
    )
    assert (neuron.effect, neuron.gradient, neuron.relevance, neuron.activation) == (0.5, 0.75, 1.5, -2.0)
    assert neuron.promotes == (" 緑",), "its coefficient turns the projection around"
    assert str(nodes.position.dtype) == "Int64"
    for target, incoming in edges.groupby("target"):
        node = nodes.loc[target]
        assert incoming.contribution.sum() + node.other == node.activation
    assert list(edges["from"]) == [nodes.component[source] for source in edges.source]
    assert (edges.through[3], edges.through_contribution[3]) == ("1.h0", -0.75)


def test_networkx_reads_it_as_it_is() -> None:
    data = TRACE.to_node_link()
    read = networkx.node_link_graph(json.loads(json.dumps(data)), edges="edges")
    graph = TRACE.to_graph()
    assert networkx.utils.graphs_equal(graph, read)
    assert graph.is_directed()
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.graph["targets"] == [" blue"]
    assert graph.nodes["0.5@1"]["always_on"]
    assert "gradient" not in graph.nodes["0.5@1"], "what was not measured is not there"
    assert graph.edges["0.5@1", "1.17@2"] == {
        "contribution": -1.0,
        "share": 0.5,
        "through": "1.h0",
        "through_contribution": -0.75,
    }


def test_without_networkx_the_extra_is_named(monkeypatch) -> None:
    real = builtins.__import__

    def without_networkx(wanted, *arguments):
        if wanted == "networkx":
            raise ModuleNotFoundError("No module named 'networkx'", name="networkx")
        return real(wanted, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_networkx)
    assert TRACE.to_node_link()["nodes"]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'neuron-attribution\[graphs\]'"):
        TRACE.to_graph()


def test_viewers_of_circuit_tracers_graphs_find_what_they_look_for() -> None:
    whole = TRACE.to_circuit_tracer("a-slug", node_threshold=1.0, edge_threshold=1.0)
    jsonschema.validate(whole, SCHEMA)
    metadata = whole["metadata"]
    assert (metadata["slug"], metadata["scan"], metadata["prompt"]) == ("a-slug", "tiny", "The sky is\n")
    nodes = {node["node_id"]: node for node in whole["nodes"]}
    assert list(nodes) == ["3_7_2", "1_17_2", "0_5_1", "E_4_1", "E_5_2", "0_-1_0"]
    assert len({node["jsNodeId"] for node in whole["nodes"]}) == len(nodes)
    assert nodes["1_17_2"]["feature"] == pairing(1, 17)
    assert nodes["1_17_2"]["clerp"] == "1.17: ' 緑'"
    assert nodes["3_7_2"]["clerp"] == 'Output " blue" (p=0.750)'
    assert {(link["source"], link["target"]): link["weight"] for link in whole["links"]} == {
        (_id(nodes, edge.source), _id(nodes, edge.target)): edge.contribution for edge in TRACE.graph.edges
    }


def _id(nodes, index):
    return list(nodes)[index]


def test_experts_of_one_index_are_features_of_their_own() -> None:
    experts = [replace(TRACE.graph.nodes[1], neuron=FfnNeuron(1, 17, expert)) for expert in (None, 0, 1)]
    graph = replace(TRACE.graph, nodes=(TRACE.graph.nodes[0], *experts), edges=())
    found = replace(TRACE, graph=graph).to_circuit_tracer(node_threshold=1.0)["nodes"]
    assert [node["feature_type"] for node in found] == ["logit"], "without edges only output and tokens are left"
    edges = tuple(TraceEdge(index, 0, 1.0, 0.3) for index in (1, 2, 3))
    found = replace(TRACE, graph=replace(graph, edges=edges)).to_circuit_tracer(node_threshold=1.0)["nodes"]
    assert len({node["node_id"] for node in found}) == len({node["feature"] for node in found}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_pruning_keeps_the_fewest_that_make_the_share(seed: int) -> None:
    graph = random_graph(seed)
    influence = {index: value for index, value in node_influence(graph).items() if index}
    kept = strongest(influence, 0.8)
    total, least = sum(influence.values()), min(influence[index] for index in kept)
    assert sum(influence[index] for index in kept) >= 0.8 * total
    assert sum(influence[index] for index in kept) - least < 0.8 * total
    assert max((value for index, value in influence.items() if index not in kept), default=0) <= least
    assert max(cumulative_shares(influence).values()) == pytest.approx(1)
    pruned = replace(TRACE, graph=replace(graph, positions=(2,)))
    few, whole = pruned.to_circuit_tracer(), pruned.to_circuit_tracer(node_threshold=1.0, edge_threshold=1.0)
    jsonschema.validate(few, SCHEMA)
    assert len(few["nodes"]) < len(whole["nodes"]) == len(graph.nodes)
    assert len(few["links"]) < len(whole["links"]) == len(graph.edges)
    ids = {node["node_id"] for node in few["nodes"]}
    assert all({link["source"], link["target"]} <= ids for link in few["links"])


@pytest.fixture
def run(address, capsys):
    """Runs `trace`; what it prints."""

    def run(*words):
        assert main(["trace", "The sky is", *words, "--address", address]) == 0
        return capsys.readouterr().out

    return run


def test_the_trace_for_people(run) -> None:
    out = run()
    for line in (
        "  2 ' is\\n'       ' blue'       0.7500     1  ' red'             0.1250         2",
        "  logit difference                     3.5000",
        "  in the frozen linear model           4.0000",
        "  neurons, each at a position          192 exist, 8 screened, 8 measured",
        "  carried by its edges to the output   3.7500, 94%",
        "  by its paths from tokens and biases  3.5000, 88%",
        "  of all edges into its nodes          75% of their magnitudes",
        "   0.7500  ' sky'@1 -> 0.5@1 -> 1.17@2 -> ' blue'",
        "  1.17    2 ' is\\n'   0.5000    0.7500     1.5000     -2.0000        12%  ' 緑'",
        "  1 ' sky'              2.5000",
        "  biases of layer 0     0.7500",
    ):
        assert line in out.splitlines(), f"{line!r} is missing from:\n{out}"


def test_every_form_is_printed_and_nothing_else(run) -> None:
    assert json.loads(run("--format", "json")) == json.loads(run("--json")) == json.loads(TRACE.to_json())
    for form, frame in (("nodes-csv", TRACE.to_dataframe()), ("edges-csv", TRACE.edges_to_dataframe())):
        rows = list(csv.DictReader(io.StringIO(run("--format", form), newline="")))
        assert len(rows) == len(frame)
        assert list(rows[0]) == list(frame.columns)
    assert json.loads(run("--format", "node-link")) == TRACE.to_node_link()
    assert json.loads(run("--format", "circuit-tracer")) == TRACE.to_circuit_tracer()


def test_the_report_is_the_page_of_the_trace(run, tmp_path) -> None:
    path = tmp_path / "trace.html"
    run("--report", str(path))
    assert path.read_text(encoding="utf-8") == TRACE.to_html()
    for text in ("<title>What carried &#x27; blue&#x27;?</title>", "<td>1.17</td>", "<td>biases of layer 0</td>"):
        assert text in TRACE.to_html()


def test_every_option_is_sent(run, service) -> None:
    first = "--target blue --contrast red --nodes 5 --edge-share .5 --subkey gate --heads --screened 9"
    second = "--span 1:3 --contrast-id 7 --no-measure --projection-top-k 0 --leave-out-always-on"
    run(*first.split())
    run(*second.split())
    run("--completion", " blue", "--no-special-tokens")
    options = TraceOptions(nodes=5, edge_share=0.5, subkey=Subkey.GATE, heads=True, screened=9)
    unmeasured = TraceOptions(measure=False, projection_top_k=0, leave_out_always_on=True)
    assert service.requests == [
        TraceRequest("The sky is", target="blue", contrast="red", options=options),
        TraceRequest("The sky is", span=Span(1, 3), contrast=7, options=unmeasured),
        TraceRequest("The sky is", completion=" blue", add_special_tokens=False),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--target a --span 1:2", "--target and --span exclude each other"),
        ("--contrast a --contrast-id 2", "--contrast and --contrast-id exclude each other"),
        ("--edge-share 1.5", "'1.5' is not a share above 0, of at most 1"),
        ("--format xml", "'xml' is none of text, json, nodes-csv, edges-csv, node-link, circuit-tracer"),
        ("--json --format nodes-csv", "not allowed with argument"),
    ],
)
def test_wrong_usage(capsys, words, message) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trace", "a", *words.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
