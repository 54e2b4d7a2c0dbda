"""Made-up attributions: as large as models get, and as hostile as token texts get."""

from dataclasses import replace

import numpy as np
from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import Aggregate
from neuron_attribution.results import (
    AggregateExplanation,
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


def made_up_answer(layers, heads, prompt, answer):
    """An answer of so many tokens to a conversation, explained together and token by token."""
    result = made_up(layers, heads, prompt + answer)
    (whole,) = result.explanations
    targets = [TokenPrediction(token, float(RANDOM.random()), -1.0, 1) for token in result.tokens[prompt:]]
    explanations = tuple(
        replace(
            whole,
            position=prompt - 1 + number,
            target=target,
            layers=LayerScores(_numbers(layers), _numbers(layers), -10.0, -1.0, 0.0),
            head_scores=_numbers(layers, heads),
        )
        for number, target in enumerate(targets)
    )
    together = AggregateExplanation(
        Aggregate.SUM,
        -1.0 * answer,
        tuple(range(prompt - 1, prompt + answer - 1)),
        tuple(targets),
        layers=whole.layers,
        head_scores=whole.head_scores,
        heads=tuple(_by_token(head, answer) for head in whole.heads),
        ffn_value_neurons=_summed(whole.ffn_value_neurons, answer),
        attention_value_neurons=_summed(whole.attention_value_neurons, answer),
    )
    origins = [TokenOrigin(0, "user", template=number not in (2, 3)) for number in range(prompt - 2)]
    origins += [TokenOrigin(None, "assistant", template=number < 2) for number in range(2 + answer)]
    return replace(result, explanations=explanations, aggregate=together, origins=tuple(origins))


def _summed(ranking, tokens):
    neurons = (replace(_by_token(neuron, tokens), coefficient=None) for neuron in ranking.neurons)
    return replace(ranking, neurons=tuple(neurons))


def _by_token(item, tokens):
    scores = tuple(_numbers(tokens).tolist())
    return replace(item, score=sum(scores), token_scores=scores)


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
