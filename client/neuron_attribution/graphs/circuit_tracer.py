"""A graph as circuit-tracer writes its own, which its page and Neuronpedia's read.

There, features of transcoders stand where neurons stand here; a neuron has the type of those, and its name as label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from graphlib import TopologicalSorter
from typing import Any, TypeVar

from neuron_attribution.display.words import token_list
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.traces import Graph, Trace, TraceNode, TraceNodeKind

Key = TypeVar("Key", bound=Hashable)
_LABELLED = 5
"""Promoted tokens in a neuron's label."""
_ALWAYS = frozenset({TraceNodeKind.OUTPUT, TraceNodeKind.TOKEN})


def circuit_tracer_json(trace: Trace, slug: str, node_threshold: float, edge_threshold: float) -> dict[str, Any]:
    """Metadata, nodes and links. Output and tokens stay whatever their influence is."""
    graph = trace.graph
    influence = node_influence(graph)
    sources = {
        index: value for index, value in influence.items() if graph.nodes[index].kind is not TraceNodeKind.OUTPUT
    }
    shares = cumulative_shares(sources)
    kept = strongest(sources, node_threshold)
    kept |= {index for index, node in enumerate(graph.nodes) if node.kind in _ALWAYS}
    weighed = {
        (edge.source, edge.target): edge.share * influence[edge.target]
        for edge in graph.edges
        if edge.source in kept and edge.target in kept
    }
    links = strongest(weighed, edge_threshold)
    linked = {index for link in links for index in link}
    kept = {index for index in kept if index in linked or graph.nodes[index].kind in _ALWAYS}
    ids = {index: _node(trace, graph.nodes[index], shares.get(index)) for index in sorted(kept)}
    return {
        "metadata": {
            "slug": slug,
            "scan": trace.model.name,
            "transcoder_list": [],
            "prompt_tokens": [token.text for token in trace.tokens],
            "prompt": "".join(token.text for token in trace.tokens),
            "node_threshold": node_threshold,
            "schema_version": 1,
            "info": {
                "description": "FFN neurons in the frozen linear model",
                "generator": {"name": "neuron-attribution"},
            },
            "pruning_settings": {"node_threshold": node_threshold, "edge_threshold": edge_threshold},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(ids.values()),
        "links": [
            {
                "source": ids[edge.source]["node_id"],
                "target": ids[edge.target]["node_id"],
                "weight": edge.contribution,
            }
            for edge in graph.edges
            if (edge.source, edge.target) in links
        ],
    }


def node_influence(graph: Graph) -> dict[int, float]:
    """Of each node the sum over all paths from it to the output of the products of the edges' shares."""
    outgoing = defaultdict(list)
    for edge in graph.edges:
        outgoing[edge.source].append(edge)
    found = {index: float(node.kind is TraceNodeKind.OUTPUT) for index, node in enumerate(graph.nodes)}
    order = TopologicalSorter({source: [edge.target for edge in edges] for source, edges in outgoing.items()})
    for index in order.static_order():
        found[index] += sum(edge.share * found[edge.target] for edge in outgoing[index])
    return found


def cumulative_shares(values: Mapping[Key, float]) -> dict[Key, float]:
    """Of each key the part of the sum that it and all larger ones make."""
    total, sum_, found = sum(values.values()), 0.0, {}
    for key in sorted(values, key=lambda key: -values[key]):
        sum_ += values[key]
        found[key] = sum_ / total if total else 1.0
    return found


def strongest(values: Mapping[Key, float], share: float) -> set[Key]:
    """The fewest keys that make such a share of the sum."""
    kept, before = set(), 0.0
    for key, reached in cumulative_shares(values).items():
        if before >= share:
            break
        kept.add(key)
        before = reached
    return kept


def _node(trace: Trace, node: TraceNode, influence: float | None) -> dict[str, Any]:
    graph, place = trace.graph, node.position or 0
    common = {"ctx_idx": place, **_flags(), "influence": influence, "activation": node.activation}
    if node.neuron is not None:
        layer, index = node.neuron.layer, _feature_index(graph, node.neuron)
        promoted = token_list(node.promoted[:_LABELLED])
        return {
            "node_id": f"{layer}_{index}_{place}",
            "jsNodeId": f"{layer}_{index}-0",
            "clerp": f"{node.neuron}: {promoted}" if promoted else str(node.neuron),
            "feature": pairing(layer, index),
            "layer": str(layer),
            "feature_type": "cross layer transcoder",
            **common,
        }
    if node.kind is TraceNodeKind.TOKEN:
        token = trace.tokens[place]
        return {
            "node_id": f"E_{token.id}_{place}",
            "jsNodeId": f"E_{token.id}-{place}",
            "clerp": token.text,
            "feature": place,
            "layer": "E",
            "feature_type": "embedding",
            **common,
        }
    if node.kind is TraceNodeKind.BIAS:
        return {
            "node_id": f"{node.layer}_-1_0",
            "jsNodeId": f"{node.layer}_-1-0",
            "clerp": f"biases of layer {node.layer}",
            "feature": -1,
            "layer": str(node.layer),
            "feature_type": "bias",
            **common,
        }
    return _output(graph, node)


def _output(graph: Graph, node: TraceNode) -> dict[str, Any]:
    """The output stands a layer above all, at the last explained position, as a logit does."""
    layers = [each.layer if each.neuron is None else each.neuron.layer for each in graph.nodes]
    layer = 2 + max((each for each in layers if each is not None), default=-1)
    first, place = graph.targets[0], graph.positions[-1]
    texts = "".join(target.token.text for target in graph.targets)
    return {
        "node_id": f"{layer}_{first.token.id}_{place}",
        "jsNodeId": f"L_{first.token.id}-{place}",
        "clerp": f'Output "{texts}" (p={first.probability:.3f})',
        "feature": first.token.id,
        "layer": str(layer),
        "ctx_idx": place,
        "feature_type": "logit",
        **_flags(token_prob=first.probability, is_target_logit=True),
        "influence": None,
        "activation": node.activation,
    }


def _flags(token_prob: float = 0.0, is_target_logit: bool = False) -> dict[str, Any]:
    return {"token_prob": token_prob, "is_target_logit": is_target_logit, "run_idx": 0, "reverse_ctx_idx": 0}


def _feature_index(graph: Graph, neuron: FfnNeuron) -> int:
    """The neuron's index; one number for it and its expert where there are experts."""
    if all(node.neuron is None or node.neuron.expert is None for node in graph.nodes):
        return neuron.index
    return pairing(0 if neuron.expert is None else 1 + neuron.expert, neuron.index)


def pairing(first: int, second: int) -> int:
    """Cantor's: one number for two, another for each pair."""
    return (first + second) * (first + second + 1) // 2 + second
