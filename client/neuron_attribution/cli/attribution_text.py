"""An attribution as text for people, one table a part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuron_attribution.cli.output import (
    Lines,
    facts,
    model_text,
    number,
    table,
    token_list,
    token_text,
)
from neuron_attribution.results import (
    AttributeResult,
    ComponentKind,
    Coverage,
    Explanation,
    HeadScore,
    LayerScores,
    NeuronRanking,
    NeuronScore,
    PromotedSide,
    QueryLayer,
    QueryLayers,
    Timings,
    Token,
    TokenPrediction,
)

SHOWN_LAYERS = 10
HEAD_COLUMNS = ("head", ">score", "strongest source position", ">position score", ">attention weight")

Tokens = Sequence[Token]


def attribution_lines(result: AttributeResult) -> Lines:
    """The whole attribution."""
    lines = table("tokens", (">position", ">id", "token"), _token_rows(result.tokens))
    for explanation in result.explanations:
        lines += ["", *explanation_lines(explanation, result.tokens)]
    foot = [("model", model_text(result.model)), ("time", timings_text(result.timings))]
    return [*lines, "", *facts(foot)]


def explanation_lines(explanation: Explanation, tokens: Tokens) -> Lines:
    """The explanation of one prediction: every part that was asked for."""
    parts = [
        _prediction_lines(explanation, tokens),
        _layer_lines(explanation.layers, contrasted=explanation.contrast is not None),
        _head_lines("heads", explanation.heads, tokens),
        _head_lines("heads, decreasing", explanation.heads_decreasing, tokens),
        _ranking_lines("FFN value neurons", explanation.ffn_value_neurons, tokens),
        _ranking_lines("FFN value neurons, decreasing", explanation.ffn_value_neurons_decreasing, tokens),
        _ranking_lines("attention value neurons", explanation.attention_value_neurons, tokens),
        _ranking_lines("attention value neurons, decreasing", explanation.attention_value_neurons_decreasing, tokens),
        _query_layer_lines("query layers of the FFN value neurons", explanation.ffn_query_layers),
        _query_layer_lines("query layers of the attention value neurons", explanation.attention_query_layers),
        _ranking_lines("query FFN neurons", explanation.query_ffn_neurons, tokens),
        _ranking_lines("query FFN neurons, decreasing", explanation.query_ffn_neurons_decreasing, tokens),
        _neuron_lines("neurons asked for", explanation.neurons, tokens),
    ]
    return [line for part in parts if part for line in ("", *part)][1:]


def timings_text(timings: Timings) -> str:
    """Where the time went."""
    stages = ("queue", "tokenization", "forward", "scoring")
    if timings.cached:
        return f"from the server's cache; tokenization {timings.tokenization * 1000:.1f} ms"
    times = ", ".join(f"{stage} {getattr(timings, stage) * 1000:.1f} ms" for stage in stages)
    return f"{times}; batch of {timings.batch_requests} requests, {timings.batch_tokens} tokens"


def coverage_text(coverage: Coverage) -> str:
    """How a ranking was obtained."""
    exactness = "exact" if coverage.exact else "not guaranteed to be exact"
    return f"{coverage.neurons} exist, {coverage.bounded} bounded, {coverage.scored} scored, {exactness}"


def _token_rows(tokens: Tokens) -> list[tuple[str, str, str]]:
    return [(str(position), str(token.id), token_text(token)) for position, token in enumerate(tokens)]


def _place(position: int, tokens: Tokens) -> str:
    text = f" {token_text(tokens[position])}" if position < len(tokens) else ""
    return f"{position}{text}"


def _prediction_lines(explanation: Explanation, tokens: Tokens) -> Lines:
    rows = [("explained", explanation.target)]
    rows += [("contrast", explanation.contrast)] if explanation.contrast else []
    rows += [("alternative", item) for item in explanation.predictions if item.token != explanation.target.token]
    title = f"prediction after position {_place(explanation.position, tokens)}"
    columns = ("", "token", ">id", ">probability", ">log probability", ">rank")
    return table(title, columns, [(name, *_prediction_cells(prediction)) for name, prediction in rows])


def _prediction_cells(prediction: TokenPrediction) -> tuple[str, ...]:
    return (
        token_text(prediction.token),
        str(prediction.token.id),
        number(prediction.probability),
        number(prediction.log_probability),
        str(prediction.rank),
    )


def _layer_lines(layers: LayerScores | None, *, contrasted: bool) -> Lines:
    if layers is None:
        return []
    names = [f"{kind} {layer}" for kind in ("attention", "FFN") for layer in range(len(layers.ffn))]
    scores = np.concatenate([layers.attention, layers.ffn])
    strongest = np.argsort(-scores, kind="stable")[:SHOWN_LAYERS]
    title = "log probability of the target" + (" minus that of the contrast" if contrasted else "")
    sums = [
        ("at the bare embedding", number(layers.embedding_log_probability)),
        ("added by attention layers", number(float(layers.attention.sum()))),
        ("added by FFN layers", number(float(layers.ffn.sum()))),
        ("remainder, rounding", number(layers.remainder)),
        ("at the final state", number(layers.final_log_probability)),
    ]
    rows = [(names[item], number(scores[item])) for item in strongest]
    return [
        *table(title, ("", ">nats"), sums),
        "",
        *table("strongest layers", ("layer", ">score"), rows),
    ]


def _head_lines(title: str, heads: Sequence[HeadScore], tokens: Tokens) -> Lines:
    if not heads:
        return []
    lines = table(title, HEAD_COLUMNS, [_head_cells(head, tokens) for head in heads])
    for head in heads:
        lines += _head_position_lines(head, tokens)
    return lines


def _head_cells(head: HeadScore, tokens: Tokens) -> tuple[str, ...]:
    if not len(head.position_scores):
        return str(head.head), number(head.score), "", "", ""
    sign = 1 if head.score >= 0 else -1
    position = int(np.argmax(sign * head.position_scores))
    weights = (number(float(head.position_scores[position])), number(float(head.attention_weights[position])))
    return str(head.head), number(head.score), _place(position, tokens), *weights


def _head_position_lines(head: HeadScore, tokens: Tokens) -> Lines:
    if not head.positions:
        return []
    rows = [
        (place, name, token_list(projection.top))
        for item in head.positions
        for place, name, projection in (
            (_place(item.position, tokens), "layer input", item.layer_input),
            ("", "key", item.key),
            ("", "value output", item.value_output),
        )
    ]
    return ["", *table(f"head {head.head} by source position", ("position", "vector", "top tokens"), rows)]


def _ranking_lines(title: str, ranking: NeuronRanking | None, tokens: Tokens) -> Lines:
    if ranking is None:
        return []
    return _neuron_lines(f"{title} ({coverage_text(ranking.coverage)})", ranking.neurons, tokens) or [
        f"{title} ({coverage_text(ranking.coverage)}): none"
    ]


def _neuron_lines(title: str, neurons: Sequence[NeuronScore], tokens: Tokens) -> Lines:
    if not neurons:
        return []
    columns = ["neuron", "source position", ">score", ">coefficient", _promoted_title(neurons)]
    rows = [_neuron_cells(neuron, tokens) for neuron in neurons]
    # A column nothing fills (positions of FFN neurons, coefficients of query neurons) says nothing.
    filled = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return table(title, [columns[index] for index in filled], [[row[index] for index in filled] for row in rows])


def _promoted_title(neurons: Sequence[NeuronScore]) -> str:
    unknown = all(neuron.promoted_side is PromotedSide.UNKNOWN for neuron in neurons)
    return "top tokens of the projection" if unknown else "promotes"


def _neuron_cells(neuron: NeuronScore, tokens: Tokens) -> tuple[str, ...]:
    place = "" if neuron.position is None else _place(neuron.position, tokens)
    return (
        str(neuron.neuron),
        place,
        number(neuron.score),
        number(neuron.coefficient),
        token_list(neuron.promoted),
    )


def _query_layer_lines(title: str, layers: QueryLayers | None) -> Lines:
    if layers is None:
        return []
    sources = f"{layers.sources} sources, {layers.skipped_sources} skipped"
    rows = [(_component_name(layer), number(layer.score)) for layer in layers.layers[:SHOWN_LAYERS]]
    return table(f"{title} ({sources})", ("layer", ">score"), rows)


def _component_name(layer: QueryLayer) -> str:
    match layer.kind:
        case ComponentKind.EMBEDDING:
            return "embedding"
        case ComponentKind.ATTENTION:
            return f"attention {layer.layer}"
        case ComponentKind.FFN:
            return f"FFN {layer.layer}"
