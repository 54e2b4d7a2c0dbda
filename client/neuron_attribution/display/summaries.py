"""One line for each result: what a Python prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import numpy as np

from neuron_attribution.comparisons import Comparison, HeadEffects
from neuron_attribution.display.words import number, token_text, visible
from neuron_attribution.neurons import Head
from neuron_attribution.results import (
    AggregateExplanation,
    AttributeResult,
    Explanation,
    HeadScore,
    InterveneResult,
    LayerScores,
    ModelInfo,
    NeuronProjection,
    NeuronRanking,
    NeuronScore,
    ProjectedToken,
    ProjectNeuronResult,
    QueryLayers,
    TokenizeResult,
    TokenPrediction,
)
from neuron_attribution.traces import Trace, TraceNodeKind

SHOWN = 3
_PARTS = (
    "layers",
    "heads",
    "ffn_value_neurons",
    "attention_value_neurons",
    "ffn_query_layers",
    "attention_query_layers",
    "query_ffn_neurons",
    "neurons",
)


def summary(result: object) -> str:
    """A result in one line, with its type."""
    return f"{type(result).__name__}({inside(result)})"


@singledispatch
def inside(result: object) -> str:
    """What stands between the brackets."""
    raise TypeError(f"{type(result).__name__} has no summary")


@inside.register
def _(result: AttributeResult) -> str:
    prompt = visible("".join(token.text for token in result.tokens))
    targets = [_prediction(item.target) for item in result.explanations]
    targets += [inside(result.aggregate)] if result.aggregate else []
    return f"{prompt} → {', '.join(targets)}; {result.model.name}"


@inside.register
def _(aggregate: AggregateExplanation) -> str:
    answer, other = (
        visible("".join(item.token.text for item in targets))
        for targets in (aggregate.targets, aggregate.contrast_targets)
    )
    against = f" against {other}" if aggregate.contrast_targets else ""
    parts = [name for name in _PARTS if getattr(aggregate, name, None)]
    together = f"{aggregate.aggregate.value} of {len(aggregate.targets)} tokens"
    return f"{answer}{against}, {together} {number(aggregate.log_probability)}: {', '.join(parts)}"


@inside.register
def _(explanation: Explanation) -> str:
    against = f" against {_prediction(explanation.contrast)}" if explanation.contrast else ""
    parts = [name for name in _PARTS if getattr(explanation, name)]
    return f"{_prediction(explanation.target)}{against} at position {explanation.position}: {', '.join(parts)}"


@inside.register
def _(ranking: NeuronRanking) -> str:
    exactness = "exact" if ranking.coverage.exact else "not guaranteed to be exact"
    names = [f"{score.neuron} {number(score.score)}" for score in ranking.neurons]
    return f"{_some(names)}; {len(names)} of {ranking.coverage.neurons}, {exactness}"


@inside.register
def _(score: NeuronScore) -> str:
    place = "" if score.position is None else f" at position {score.position}"
    promoted = f" promotes {_tokens(score.promoted)}" if score.promoted else ""
    return f"{score.neuron}{place} {number(score.score)}{promoted}"


@inside.register
def _(layers: LayerScores) -> str:
    attention, ffn = number(float(layers.attention.sum())), number(float(layers.ffn.sum()))
    start, end = number(layers.embedding_log_probability), number(layers.final_log_probability)
    return f"{len(layers.ffn)} layers: embedding {start}, attention {attention}, FFN {ffn}, final state {end}"


@inside.register
def _(head: HeadScore) -> str:
    return f"{head.head} {number(head.score)}; {len(head.position_scores)} positions"


@inside.register
def _(layers: QueryLayers) -> str:
    names = [f"{item.kind.value} {item.layer} {number(item.score)}" for item in layers.layers]
    return f"{_some(names)}; {layers.sources} sources"


@inside.register
def _(result: ProjectNeuronResult) -> str:
    return f"{_some([str(item.neuron) for item in result.projections])}; {result.model.name}"


@inside.register
def _(item: NeuronProjection) -> str:
    return f"{item.neuron}: top {_tokens(item.projection.top)}, bottom {_tokens(item.projection.bottom)}"


@inside.register
def _(result: InterveneResult) -> str:
    before = _prediction(result.before.target)
    after = [f"{_prediction(each.after.target)}, KL {number(each.kl_divergence)}" for each in result.results]
    return f"{before} → {_some(after)}; {result.model.name}"


@inside.register
def _(trace: Trace) -> str:
    graph = trace.graph
    targets = ", ".join(map(_prediction, graph.targets))
    neurons = [f"{node.name} {number(node.effect)}" for node in graph.nodes if node.kind is TraceNodeKind.FFN_NEURON]
    return f"{targets}: {_some(neurons)}; {len(graph.nodes)} nodes, {len(graph.edges)} edges; {trace.model.name}"


@inside.register
def _(comparison: Comparison) -> str:
    sides = " against ".join(_prediction(side.target) for side in (comparison.first, comparison.second))
    rankings = comparison.ffn_neurons.fell, comparison.attention_neurons.fell
    fell = [f"{item.neuron} {number(item.difference)}" for ranking in rankings for item in ranking.neurons[:1]]
    return f"{sides}: {', '.join(fell)}; {comparison.first.model.name}"


@inside.register
def _(effects: HeadEffects) -> str:
    layer, head = divmod(int(np.nanargmin(effects.changes)), effects.changes.shape[1])
    change = number(float(effects.changes[layer, head]))
    return f"{_prediction(effects.target)}; {np.isfinite(effects.changes).sum()} heads, {Head(layer, head)} {change}"


@inside.register
def _(result: TokenizeResult) -> str:
    return f"{len(result.tokens)}: {' '.join(token_text(item.token) for item in result.tokens)}"


@inside.register
def _(info: ModelInfo) -> str:
    sizes = f"{info.sizes.layers} layers, {info.sizes.heads} heads"
    return f"{info.model.name}, {info.family}, {info.model.dtype}, {sizes}, {info.device}"


def _prediction(prediction: TokenPrediction) -> str:
    return f"{token_text(prediction.token)} {number(prediction.probability)}"


def _tokens(tokens: Sequence[ProjectedToken]) -> str:
    return " ".join(token_text(item.token) for item in tokens[:SHOWN]) + " …" * (len(tokens) > SHOWN)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
