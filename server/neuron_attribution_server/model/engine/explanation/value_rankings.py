"""Which rankings of value neurons a group of rows wants, found together and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuron_attribution.neurons import AttentionNeuron, Neuron
from neuron_attribution.requests import AttributeOptions, Direction, Part
from neuron_attribution.results import Coverage, NeuronRanking, NeuronScore, PromotedSide

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.value_search import Found, Kind, Wanted
from neuron_attribution_server.model.engine.explanation.rows import Row

PARTS = {Kind.FFN: Part.FFN_VALUE_NEURONS, Kind.ATTENTION: Part.ATTENTION_VALUE_NEURONS}
SIGNS = {Direction.INCREASE: (1,), Direction.DECREASE: (-1,), Direction.BOTH: (1, -1)}


@dataclass(frozen=True, slots=True)
class Source:
    """A value neuron that serves as a query source; `position` is where its key reads the residual stream."""

    neuron: Neuron
    position: int
    score: float


def wanted_rankings(rows: Sequence[Row]) -> dict[Wanted, int]:
    """The ends of rankings that the rows' parts ask for, and how many neurons of each."""
    return {
        wanted_ranking(index, kind, sign, row.options): row.options.top_k
        for index, row in enumerate(rows)
        for kind, part in PARTS.items()
        if part in row.options.parts
        for sign in SIGNS[row.options.direction]
    }


def wanted_ranking(index: int, kind: Kind, sign: int, options: AttributeOptions) -> Wanted:
    """One end of one kind's ranking, as a row's options have it."""
    over_positions = kind is Kind.ATTENTION and options.attention_neurons_over_positions
    return Wanted(index, kind, sign, options.exhaustive, over_positions)


def wanted_sources(rows: Sequence[Row]) -> dict[Wanted, int]:
    """The value neurons that the rows' query parts start from: always the highest by log probability increase.

    Attention neurons at one source position each, where their keys read the residual stream.
    """
    return {
        Wanted(index, kind, 1, row.options.exhaustive): row.options.query_sources
        for index, row in enumerate(rows)
        for kind in source_kinds(row.options)
    }


def source_kinds(options: AttributeOptions) -> tuple[Kind, ...]:
    """Which value neurons are searched for, because the query parts start from the strongest."""
    if options.query_from:
        return ()
    if Part.QUERY_LAYERS in options.parts:
        return (Kind.FFN, Kind.ATTENTION)
    return (Kind.ATTENTION,) if Part.QUERY_FFN_NEURONS in options.parts else ()


def merged(first: Mapping[Wanted, int], second: Mapping[Wanted, int]) -> dict[Wanted, int]:
    """Both, with the larger count where both want the same."""
    return {want: max(first.get(want, 0), second.get(want, 0)) for want in (*first, *second)}


def ranking(view: ModelView, found: Found, wanted: Wanted, k: int) -> NeuronRanking:
    """The first k found neurons, named, without projections."""
    placed = wanted.kind is Kind.ATTENTION and not wanted.over_positions
    ids = found.ranked.ids[:k]
    coefficients = found.neurons.coefficients_of(ids).tolist()
    named = zip(_names(view, found, wanted.kind, k), found.ranked.scores[:k].tolist(), coefficients, strict=True)
    neurons = tuple(
        NeuronScore(neuron, score, position if placed else None, coefficient, None, side(coefficient))
        for (neuron, position), score, coefficient in named
    )
    return NeuronRanking(neurons, Coverage(found.neurons.total, found.neurons.total, found.ranked.scored, found.exact))


def strongest_sources(view: ModelView, found: Found, kind: Kind, k: int, explained: int) -> list[Source]:
    """The first k found neurons as query sources; FFN neurons read at the explained position."""
    named = zip(_names(view, found, kind, k), found.ranked.scores[:k].tolist(), strict=True)
    return [
        Source(neuron, position if kind is Kind.ATTENTION else explained, score) for (neuron, position), score in named
    ]


def side(coefficient: float) -> PromotedSide:
    """Which end of its projection a neuron with this coefficient raises."""
    if coefficient == 0:
        return PromotedSide.UNKNOWN
    return PromotedSide.TOP if coefficient > 0 else PromotedSide.BOTTOM


def _names(view: ModelView, found: Found, kind: Kind, k: int) -> list[tuple[Neuron, int]]:
    columns = (column.tolist() for column in found.neurons.locate(found.ranked.ids[:k]))
    size = view.sizes.head_size
    return [
        (view.ffn_neuron(layer, unit) if kind is Kind.FFN else AttentionNeuron(layer, *divmod(unit, size)), position)
        for layer, unit, position in zip(*columns, strict=True)
    ]
