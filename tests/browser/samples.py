"""Made-up attributions: as large as models get, and as hostile as token texts get."""

import numpy as np
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.results import (
    AttributeResult,
    ComponentKind,
    Coverage,
    Explanation,
    HeadScore,
    LayerScores,
    ModelIdentity,
    NeuronRanking,
    NeuronScore,
    ProjectedToken,
    Projection,
    PromotedSide,
    QueryLayer,
    QueryLayers,
    Timings,
    Token,
    TokenPrediction,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "<!--",
    "]]>",
    "\u2028\u2029",
    "\u202egnp.exe",
    "\0\x1b[31m",
    "\ufffd",
    "'\"&amp;",
    "javascript:alert(3)",
    "=HYPERLINK(1)",
    "${alert(4)}",
)
RANDOM = np.random.default_rng(7)


def made_up(layers, heads, tokens, texts=(" river", " bank", ",", " old", "\n")):
    """An attribution with every part, of a model and a prompt of these sizes."""
    vocabulary = [Token(number, text) for number, text in enumerate(texts)]
    words = [vocabulary[number % len(vocabulary)] for number in range(tokens)]
    last = tokens - 1
    strongest = tuple(_head(Head(layers - 1 - n // heads, n % heads), tokens) for n in range(min(10, layers * heads)))
    ffn = [FfnNeuron(n % layers, 100 + n) for n in range(10)]
    attention = [AttentionNeuron(n % layers, n % heads, n) for n in range(10)]
    query_layers = QueryLayers(tuple(_components(layers)), 30, 0)
    explanation = Explanation(
        position=last,
        target=TokenPrediction(vocabulary[0], 0.5, -0.6931, 1),
        predictions=tuple(TokenPrediction(token, 0.5 / (n + 1), -1.0, n + 1) for n, token in enumerate(vocabulary)),
        layers=LayerScores(_numbers(layers), _numbers(layers), -10.0, -0.6931, 0.0),
        head_scores=_numbers(layers, heads),
        heads=strongest,
        ffn_value_neurons=_ranking(ffn, vocabulary),
        attention_value_neurons=_ranking(attention, vocabulary, position=last),
        ffn_query_layers=query_layers,
        attention_query_layers=query_layers,
        query_ffn_neurons=_ranking(ffn, vocabulary),
    )
    model = ModelIdentity("made-up", "revision-1", "float32")
    return AttributeResult(model, tuple(words), (explanation,), Timings(forward=0.1, scoring=0.2, batch_tokens=tokens))


def _numbers(*shape):
    return RANDOM.normal(0, 0.3, shape).astype(np.float32)


def _head(head, tokens):
    weights = np.abs(_numbers(tokens))
    return HeadScore(head, float(_numbers(1)[0]), _numbers(tokens), weights / weights.sum())


def _components(layers):
    yield QueryLayer(ComponentKind.EMBEDDING, 0, 0.9)
    for layer in range(layers):
        yield QueryLayer(ComponentKind.ATTENTION, layer, 0.5 / (layer + 1))
        yield QueryLayer(ComponentKind.FFN, layer, 0.4 / (layer + 1))


def _ranking(neurons, vocabulary, position=None):
    ends = tuple(ProjectedToken(token, 1.0) for token in vocabulary[:10])
    projection = Projection(ends, ends[::-1])
    scores = [
        NeuronScore(neuron, 1.0 / (n + 1), position, (-1.0) ** n, projection, PromotedSide.TOP)
        for n, neuron in enumerate(neurons)
    ]
    return NeuronRanking(tuple(scores), Coverage(1000, 1000, 12, True))
