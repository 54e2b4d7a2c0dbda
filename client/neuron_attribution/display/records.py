"""Results as rows of values under named columns: what data frames and CSV hold.

A component (a layer, a head, a neuron) has the columns of COMPONENT; those that it does not have are None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import singledispatch

import numpy as np

from neuron_attribution.comparisons import Comparison, HeadEffects
from neuron_attribution.display.attributions import component_name, heads_of, layer_text
from neuron_attribution.display.traces import EDGES, NODES, edge_rows, node_rows
from neuron_attribution.neurons import FfnNeuron, Head, Neuron
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
    ProjectedRank,
    ProjectNeuronResult,
    QueryLayers,
    Token,
    TokenizeResult,
)
from neuron_attribution.traces import Trace

Value = str | int | float | tuple[str, ...] | None
Row = tuple[Value, ...]

COMPONENT = (
    "rank",
    "component",
    "kind",
    "layer",
    "head",
    "expert",
    "index",
    "position",
    "score",
    "coefficient",
    "promotes",
)
NEURON = ("target_value", "target_rank", "contrast_value", "contrast_rank", "activity")
"""What is known of neurons alone, behind the columns that every component has."""
RANKING = ("ranking", "direction", *COMPONENT, "source_token", *NEURON)
_NO_NEURON = (None,) * (len((*COMPONENT, *NEURON)) - COMPONENT.index("coefficient"))
PROJECTION = ("component", "end", "rank", "token_id", "token", "score")
INTEGERS = frozenset(
    (
        *("explanation", "rank", "layer", "head", "expert", "index", "position", "token_id", "first_byte", "end_byte"),
        *("message", "set", "target_rank", "contrast_rank"),
    )
)
"""The columns of whole numbers, in whatever result."""


@dataclass(frozen=True, slots=True)
class Records:
    """Rows of values under named columns."""

    columns: tuple[str, ...]
    rows: Sequence[Row]


@singledispatch
def records(result: object) -> Records:
    """The rows of a result."""
    raise TypeError(f"{type(result).__name__} has no rows")


@records.register
def _(result: AttributeResult) -> Records:
    explained: list[tuple[int | None, str, Explanation | AggregateExplanation]] = [
        (number, each.target.token.text, each) for number, each in enumerate(result.explanations)
    ]
    if result.aggregate is not None:
        explained.insert(0, (None, "".join(each.token.text for each in result.aggregate.targets), result.aggregate))
    rows = [(number, text, *row) for number, text, each in explained for row in _ranked(each, result.tokens)]
    return Records(("explanation", "target", *RANKING), rows)


@records.register
def _(aggregate: AggregateExplanation) -> Records:
    return Records(RANKING, list(_ranked(aggregate, ())))


@records.register
def _(explanation: Explanation) -> Records:
    return Records(RANKING, list(_ranked(explanation, ())))


@records.register
def _(ranking: NeuronRanking) -> Records:
    return Records((*COMPONENT, *NEURON), _neurons(ranking.neurons))


@records.register
def _(score: NeuronScore) -> Records:
    return Records((*COMPONENT, *NEURON), _neurons([score]))


@records.register
def _(layers: LayerScores) -> Records:
    rows = zip(range(len(layers.ffn)), layers.attention.tolist(), layers.ffn.tolist(), strict=True)
    return Records(("layer", "attention", "ffn"), list(rows))


@records.register
def _(head: HeadScore) -> Records:
    scores, weights = head.position_scores.tolist(), head.attention_weights.tolist()
    return Records(
        ("position", "score", "attention_weight"), list(zip(range(len(scores)), scores, weights, strict=True))
    )


@records.register
def _(layers: QueryLayers) -> Records:
    return Records((*COMPONENT, *NEURON), _query_layers(layers))


@records.register
def _(result: ProjectNeuronResult) -> Records:
    return Records(PROJECTION, [row for item in result.projections for row in records(item).rows])


@records.register
def _(item: NeuronProjection) -> Records:
    ends = (("top", item.projection.top), ("bottom", item.projection.bottom))
    rows = [
        (str(item.neuron), end, rank, token.token.id, token.token.text, token.score)
        for end, tokens in ends
        for rank, token in enumerate(tokens, 1)
    ]
    return Records(PROJECTION, rows)


@records.register
def _(result: InterveneResult) -> Records:
    states = [(None, result.before), *((each.kl_divergence, each.after) for each in result.results)]
    rows: list[Row] = [
        (number, kind, item.token.id, item.token.text, item.probability, item.log_probability, item.rank, divergence)
        for number, (divergence, state) in enumerate(states)
        for kind, items in (("watched", (state.target,)), ("predicted", state.predictions))
        for item in items
    ]
    columns = ("set", "kind", "token_id", "token", "probability", "log_probability", "rank", "kl_divergence")
    return Records(columns, rows)


@records.register
def _(trace: Trace) -> Records:
    return Records(NODES, node_rows(trace))


def edge_records(trace: Trace) -> Records:
    """The edges of a graph, whose nodes are its own rows."""
    return Records(EDGES, edge_rows(trace))


@records.register
def _(comparison: Comparison) -> Records:
    kinds = {"ffn": comparison.ffn_neurons, "attention": comparison.attention_neurons}
    rows: list[Row] = [
        (kind, direction, rank, str(item.neuron), item.difference, item.first.score, item.second.score)
        for kind, found in kinds.items()
        for direction, ranking in (("fell", found.fell), ("rose", found.rose))
        for rank, item in enumerate(ranking.neurons, 1)
    ]
    return Records(("kind", "direction", "rank", "component", "difference", "first", "second"), rows)


@records.register
def _(effects: HeadEffects) -> Records:
    values = effects.changes, effects.probabilities, effects.log_probabilities, effects.kl_divergences
    rows: list[Row] = [
        (str(Head(layer, head)), layer, head, *(float(each[layer, head]) for each in values))
        for layer, head in np.argwhere(np.isfinite(effects.changes)).tolist()
    ]
    return Records(("component", "layer", "head", "change", "probability", "log_probability", "kl_divergence"), rows)


@records.register
def _(result: TokenizeResult) -> Records:
    said: Sequence[Row] = [(each.message, each.role, each.template) for each in result.origins]
    rows = [
        (position, item.token.id, item.token.text, item.start, item.end, *origin)
        for position, (item, origin) in enumerate(
            zip(result.tokens, said or [(None,) * 3] * len(result.tokens), strict=True)
        )
    ]
    return Records(("position", "token_id", "token", "first_byte", "end_byte", "message", "role", "template"), rows)


@records.register
def _(info: ModelInfo) -> Records:
    rows: list[Row] = [("model", name, str(value)) for name, value in asdict(info.model).items()]
    rows += [("size", name, str(value)) for name, value in asdict(info.sizes).items()]
    rows += [("limit", name, str(value)) for name, value in asdict(info.limits).items()]
    rows += [("invariant", item.name, str(item.error)) for item in info.invariants]
    rows += [("layer", str(number), layer_text(layer)) for number, layer in enumerate(info.layers)]
    return Records(("section", "name", "value"), rows)


def _ranked(explanation: Explanation | AggregateExplanation, tokens: Sequence[Token]) -> Iterator[Row]:
    rankings: Iterable[tuple[str, str, Sequence[Row]]] = (
        ("layers", "increase", _layers(explanation.layers)),
        ("heads", "increase", _heads(heads_of(explanation))),
        ("heads", "decrease", _heads(explanation.heads_decreasing)),
        *_neuron_rankings(explanation),
        ("ffn_query_layers", "increase", _query_layers(getattr(explanation, "ffn_query_layers", None))),
        ("attention_query_layers", "increase", _query_layers(getattr(explanation, "attention_query_layers", None))),
        ("neurons", "", _neurons(explanation.neurons)),
    )
    where = COMPONENT.index("position")
    for ranking, direction, rows in rankings:
        for row in rows:
            token = _token(row[where], tokens)
            yield (ranking, direction or None, *row[: len(COMPONENT)], token, *row[len(COMPONENT) :])


def _neuron_rankings(explanation: Explanation | AggregateExplanation) -> Iterator[tuple[str, str, Sequence[Row]]]:
    for name in ("ffn_value_neurons", "attention_value_neurons", "query_ffn_neurons"):
        for direction, ending in (("increase", ""), ("decrease", "_decreasing")):
            ranking: NeuronRanking | None = getattr(explanation, name + ending, None)
            yield name, direction, _neurons(ranking.neurons if ranking else ())


def _token(position: Value, tokens: Sequence[Token]) -> str | None:
    return tokens[position].text if isinstance(position, int) and position < len(tokens) else None


def _neurons(scores: Sequence[NeuronScore]) -> list[Row]:
    return [
        (
            rank,
            str(score.neuron),
            *_neuron_names(score.neuron),
            score.position,
            score.score,
            score.coefficient,
            tuple(item.token.text for item in score.promoted) if score.projection else None,
            *_standing(score.target),
            *_standing(score.contrast),
            score.activity,
        )
        for rank, score in enumerate(scores, 1)
    ]


def _standing(stands: ProjectedRank | None) -> Row:
    return (None, None) if stands is None else (stands.score, stands.rank)


def _neuron_names(neuron: Neuron) -> Row:
    """Kind, layer, head, expert, index."""
    if isinstance(neuron, FfnNeuron):
        return "ffn_neuron", neuron.layer, None, neuron.expert, neuron.index
    return "attention_neuron", neuron.layer, neuron.head, None, neuron.index


def _layers(layers: LayerScores | None) -> list[Row]:
    """Strongest first."""
    if layers is None:
        return []
    scores = np.stack([layers.attention, layers.ffn])
    kinds, numbers = np.unravel_index(np.argsort(-scores, axis=None, kind="stable"), scores.shape)
    named = zip(kinds.tolist(), numbers.tolist(), strict=True)
    return [
        _component(rank, ("attention", "ffn")[kind], layer, float(scores[kind, layer]))
        for rank, (kind, layer) in enumerate(named, 1)
    ]


def _query_layers(layers: QueryLayers | None) -> list[Row]:
    return [
        _component(rank, item.kind.value, item.layer, item.score, component_name(item))
        for rank, item in enumerate(layers.layers if layers else (), 1)
    ]


def _component(rank: int, kind: str, layer: int, score: float, name: str = "") -> Row:
    shown = name or f"{'FFN' if kind == 'ffn' else kind} {layer}"
    return (rank, shown, kind, layer, None, None, None, None, score, *_NO_NEURON)


def _heads(heads: Sequence[HeadScore]) -> list[Row]:
    return [_head(rank, item.head, item.score) for rank, item in enumerate(heads, 1)]


def _head(rank: int, head: Head, score: float) -> Row:
    return (rank, str(head), "head", head.layer, head.head, None, None, None, score, *_NO_NEURON)
