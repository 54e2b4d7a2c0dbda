"""An attribution as tables, one a part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from neuron_attribution.display.common import is_common
from neuron_attribution.display.table import TextTable
from neuron_attribution.display.words import coverage_text, number, place, token_list, token_text
from neuron_attribution.neurons import Head
from neuron_attribution.results import (
    ComponentKind,
    Explanation,
    HeadScore,
    LayerParts,
    LayerScores,
    NeuronRanking,
    NeuronScore,
    PromotedSide,
    QueryLayer,
    QueryLayers,
    Token,
    TokenPrediction,
)

SHOWN_LAYERS = 10
SHOWN_HEADS = 10
_NO_SCORES = np.zeros(0, np.float32)
HEAD_COLUMNS = ("head", ">score", "strongest source position", ">position score", ">attention weight")

Tokens = Sequence[Token]


def explanation_tables(explanation: Explanation, tokens: Tokens) -> list[TextTable]:
    """The explanation of one prediction: every part that was asked for."""
    contrasted = explanation.contrast is not None
    return [
        _prediction_table(explanation, tokens),
        *(layer_tables(explanation.layers, contrasted=contrasted) if explanation.layers else ()),
        *head_tables("heads", heads_of(explanation)[: max(SHOWN_HEADS, len(explanation.heads))], tokens),
        *head_tables("heads, decreasing", explanation.heads_decreasing, tokens),
        *_ranking_tables("FFN value neurons", explanation.ffn_value_neurons, tokens),
        *_ranking_tables(
            "FFN value neurons, decreasing", explanation.ffn_value_neurons_decreasing, tokens, falling=True
        ),
        *_ranking_tables("attention value neurons", explanation.attention_value_neurons, tokens),
        *_ranking_tables(
            "attention value neurons, decreasing", explanation.attention_value_neurons_decreasing, tokens, falling=True
        ),
        *_query_layer_tables("query layers of the FFN value neurons", explanation.ffn_query_layers),
        *_query_layer_tables("query layers of the attention value neurons", explanation.attention_query_layers),
        *_ranking_tables("query FFN neurons", explanation.query_ffn_neurons, tokens),
        *_ranking_tables("query FFN neurons, decreasing", explanation.query_ffn_neurons_decreasing, tokens),
        *([neuron_table("neurons asked for", explanation.neurons, tokens)] if explanation.neurons else ()),
    ]


def token_table(tokens: Tokens) -> TextTable:
    """The tokens of the pass."""
    rows = [(str(position), str(token.id), token_text(token)) for position, token in enumerate(tokens)]
    return TextTable("tokens", (">position", ">id", "token"), rows)


def layer_tables(layers: LayerScores, *, contrasted: bool = False) -> list[TextTable]:
    """What the layers add up to, and the strongest of them."""
    title = "log probability of the target" + (" minus that of the contrast" if contrasted else "")
    sums = [
        ("at the bare embedding", number(layers.embedding_log_probability)),
        ("added by attention layers", number(float(layers.attention.sum()))),
        ("added by FFN layers", number(float(layers.ffn.sum()))),
        ("remainder, rounding", number(layers.remainder)),
        ("at the final state", number(layers.final_log_probability)),
    ]
    names = [f"{kind} {layer}" for kind in ("attention", "FFN") for layer in range(len(layers.ffn))]
    scores = np.concatenate([layers.attention, layers.ffn])
    rows = [(names[item], number(scores[item])) for item in np.argsort(-scores, kind="stable")[:SHOWN_LAYERS]]
    return [TextTable(title, ("", ">nats"), sums), TextTable("strongest layers", ("layer", ">score"), rows)]


def head_tables(title: str, heads: Sequence[HeadScore], tokens: Tokens) -> list[TextTable]:
    """The heads, and for each what its source positions hold where that was asked for."""
    if not heads:
        return []
    placed = any(len(head.position_scores) for head in heads)
    columns = HEAD_COLUMNS if placed else HEAD_COLUMNS[:2]
    table = TextTable(title, columns, [_head_cells(head, tokens)[: len(columns)] for head in heads])
    return [table, *(_head_position_table(head, tokens) for head in heads if head.positions)]


def heads_of(explanation: Explanation) -> Sequence[HeadScore]:
    """The heads that came with their positions; else all whose scores came, without, highest first.

    Layers without heads have scores that are not numbers.
    """
    scores = explanation.head_scores
    if explanation.heads or explanation.heads_decreasing or scores is None:
        return explanation.heads
    order = np.argsort(-scores, axis=None, kind="stable")[: int(np.isfinite(scores).sum())].tolist()
    heads = [Head(*divmod(place, scores.shape[1])) for place in order]
    return [HeadScore(head, float(scores[head.layer, head.head]), _NO_SCORES, _NO_SCORES) for head in heads]


def layer_rows(layers: Sequence[LayerParts]) -> list[tuple[str, str]]:
    """What layers are made of, those together that follow one another and are alike."""
    rows = []
    for what, alike in groupby(enumerate(map(layer_text, layers)), key=itemgetter(1)):
        numbers = [number for number, _ in alike]
        rows.append((str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}", what))
    return rows


def layer_text(layer: LayerParts) -> str:
    """What a layer is made of."""
    parts = [mixer.value for mixer in layer.mixers]
    parts[:1] = [f"{parts[0]} ({layer.heads} heads)"] if layer.heads else parts[:1]
    parts += [f"{layer.ffn_width:,} FFN neurons"] if layer.ffn_width else []
    return ", ".join([*parts, *([f"{layer.experts} experts"] if layer.experts else [])])


def ranking_table(title: str, ranking: NeuronRanking, tokens: Tokens = (), *, falling: bool = False) -> TextTable:
    """A ranking, and how it was obtained."""
    title = f"{title} ({coverage_text(ranking.coverage)})"
    if not ranking.neurons:
        return TextTable(f"{title}: none")
    return neuron_table(title, ranking.neurons, tokens, falling=falling)


def neuron_table(
    title: str, neurons: Sequence[NeuronScore], tokens: Tokens = (), *, falling: bool = False
) -> TextTable:
    """Scored neurons and what they promote; with `falling`, which lower the target, what they suppress."""
    columns = [
        *("neuron", "source position", ">score", ">coefficient", ">active in", ">target rank", ">target value"),
        *(">contrast value", _end_title(neurons, falling=falling)),
    ]
    rows = [_neuron_cells(neuron, tokens, falling=falling) for neuron in neurons]
    # A column nothing fills (positions of FFN neurons, coefficients of query neurons, contrasts) says nothing.
    filled = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return TextTable(
        title,
        [columns[index] for index in filled],
        [[row[index] for index in filled] for row in rows],
        frozenset(place for place, neuron in enumerate(neurons) if is_common(neuron)),
    )


def query_layer_table(title: str, layers: QueryLayers) -> TextTable:
    """The strongest query layers, and how many neurons were traced to them."""
    sources = f"{layers.sources} sources, {layers.skipped_sources} skipped"
    rows = [(component_name(layer), number(layer.score)) for layer in layers.layers[:SHOWN_LAYERS]]
    return TextTable(f"{title} ({sources})", ("layer", ">score"), rows)


def component_name(layer: QueryLayer) -> str:
    """A component of the residual stream."""
    match layer.kind:
        case ComponentKind.EMBEDDING:
            return "embedding"
        case ComponentKind.ATTENTION:
            return f"attention {layer.layer}"
        case ComponentKind.FFN:
            return f"FFN {layer.layer}"


def _prediction_table(explanation: Explanation, tokens: Tokens) -> TextTable:
    rows = [("explained", explanation.target)]
    rows += [("contrast", explanation.contrast)] if explanation.contrast else []
    rows += [("behind a space", explanation.spaced_target)] if explanation.spaced_target else []
    shown = {prediction.token for _, prediction in rows} - {explanation.contrast and explanation.contrast.token}
    rows += [("alternative", item) for item in explanation.predictions if item.token not in shown]
    title = f"prediction after position {place(explanation.position, tokens)}"
    columns = ("", "token", ">id", ">probability", ">log probability", ">rank")
    return TextTable(title, columns, [(name, *_prediction_cells(prediction)) for name, prediction in rows])


def _prediction_cells(prediction: TokenPrediction) -> tuple[str, ...]:
    return (
        token_text(prediction.token),
        str(prediction.token.id),
        number(prediction.probability),
        number(prediction.log_probability),
        str(prediction.rank),
    )


def _ranking_tables(
    title: str, ranking: NeuronRanking | None, tokens: Tokens, *, falling: bool = False
) -> list[TextTable]:
    return [] if ranking is None else [ranking_table(title, ranking, tokens, falling=falling)]


def _query_layer_tables(title: str, layers: QueryLayers | None) -> list[TextTable]:
    return [] if layers is None else [query_layer_table(title, layers)]


def _head_cells(head: HeadScore, tokens: Tokens) -> tuple[str, ...]:
    if not len(head.position_scores):
        return str(head.head), number(head.score), "", "", ""
    sign = 1 if head.score >= 0 else -1
    position = int(np.argmax(sign * head.position_scores))
    weights = (number(float(head.position_scores[position])), number(float(head.attention_weights[position])))
    return str(head.head), number(head.score), place(position, tokens), *weights


def _head_position_table(head: HeadScore, tokens: Tokens) -> TextTable:
    rows = [
        (where, name, token_list(projection.top))
        for item in head.positions
        for where, name, projection in (
            (place(item.position, tokens), "layer input", item.layer_input),
            ("", "key", item.key),
            ("", "value output", item.value_output),
        )
    ]
    return TextTable(f"head {head.head} by source position", ("position", "vector", "top tokens"), rows)


def _standings(neuron: NeuronScore) -> tuple[str, str, str]:
    """The target's rank in the projection; beside a contrast what counts are the values of both."""
    target, contrast = neuron.target, neuron.contrast
    if target is None or contrast is None:
        return "" if target is None else str(target.rank), "", ""
    return "", number(target.score), number(contrast.score)


def _end_title(neurons: Sequence[NeuronScore], *, falling: bool) -> str:
    if all(neuron.promoted_side is PromotedSide.UNKNOWN for neuron in neurons):
        return "top tokens of the projection"
    return "suppresses" if falling else "promotes"


def _neuron_cells(neuron: NeuronScore, tokens: Tokens, *, falling: bool) -> tuple[str, ...]:
    where = "" if neuron.position is None else place(neuron.position, tokens)
    return (
        str(neuron.neuron),
        where,
        number(neuron.score),
        number(neuron.coefficient),
        "" if neuron.activity is None else f"{neuron.activity:.0%}",
        *_standings(neuron),
        token_list(neuron.suppressed if falling else neuron.promoted),
    )
