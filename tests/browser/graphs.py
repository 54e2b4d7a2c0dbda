"""A made-up graph, as large as graphs are asked for."""

import numpy as np
from browser.samples import HOSTILE
from neuron_attribution.neurons import FfnNeuron, Head
from neuron_attribution.results import (
    ModelIdentity,
    ProjectedToken,
    Projection,
    PromotedSide,
    Timings,
    Token,
    TokenPrediction,
)
from neuron_attribution.traces import Graph, Trace, TraceCoverage, TraceEdge, TraceNode, TraceNodeKind

EDGES_EACH = 20


def made_up_trace(neurons, layers, texts):
    """Neurons at all positions, most at the last one; each gets from as many lower nodes as graphs keep."""
    random = np.random.default_rng(3)
    tokens = tuple(Token(number, text) for number, text in enumerate(texts))
    last = len(tokens) - 1
    output = TraceNode(TraceNodeKind.OUTPUT, 5.0, 5.0, other=1.0)
    nodes = [output, *(_neuron(random, number, layers, last) for number in range(neurons))]
    nodes += [TraceNode(TraceNodeKind.TOKEN, 1.0, 0.5, position=position) for position in range(len(tokens))]
    nodes.append(TraceNode(TraceNodeKind.BIAS, 1.0, 0.25, layer=0))
    edges = [edge for target in range(neurons + 1) for edge in _edges(random, target, nodes)]
    coverage = TraceCoverage(layers * 1000 * len(tokens), 4 * neurons, 4 * neurons, 0.5, 0.25, 0.1)
    targets = (TokenPrediction(tokens[0], 0.75, -0.25, 1),)
    graph = Graph((last,), targets, (), 5.0, 1.25, tuple(nodes), tuple(edges), coverage)
    return Trace(ModelIdentity("made-up", "revision-1", "float32"), tokens, graph, Timings(forward=0.1, scoring=0.2))


def _neuron(random, number, layers, last):
    layer = int(random.integers(layers))
    position = last if random.random() < 0.6 else int(random.integers(last + 1))
    promoted = Projection((ProjectedToken(Token(1, HOSTILE[number % len(HOSTILE)]), 1.0),), ())
    activation, relevance, effect = random.normal(0, 1, 3).tolist()
    return TraceNode(
        TraceNodeKind.FFN_NEURON,
        activation,
        relevance,
        FfnNeuron(layer, number),
        position,
        effect=effect,
        gradient=effect / 2,
        projection=promoted,
        promoted_side=PromotedSide.TOP,
        always_on=number % 17 == 3,
    )


def _edges(random, target, nodes):
    """From lower layers at no later position, the largest first."""
    node = nodes[target]
    sources = [source for source, other in enumerate(nodes) if _is_below(other, node)]
    chosen = random.permutation(sources)[:EDGES_EACH]
    shares = sorted(random.dirichlet(np.ones(len(chosen) + 5))[: len(chosen)].tolist(), reverse=True)
    for source, share in zip(chosen.tolist(), shares, strict=True):
        contribution = float(share * node.activation * random.choice([-1, 1]))
        yield TraceEdge(source, target, contribution, share, Head(1, 2) if source % 5 == 0 else None)


def _is_below(source, target):
    heights = [
        {TraceNodeKind.TOKEN: -1, TraceNodeKind.OUTPUT: 10_000}.get(node.kind, node.layer)
        if node.neuron is None
        else node.neuron.layer
        for node in (source, target)
    ]
    before = target.position is None or source.position is None or source.position <= target.position
    return heights[0] < heights[1] and before
