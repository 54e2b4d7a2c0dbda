"""Which rankings of value neurons a group of rows wants, found together and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from neuron_attribution.neurons import AttentionNeuron, Neuron
from neuron_attribution.requests import AttributeOptions, Direction, Part
from neuron_attribution.results import Coverage, NeuronRanking, NeuronScore, PromotedSide

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Ids
from neuron_attribution_server.model.attribution.search.value_search import Found, Kind, Wanted
from neuron_attribution_server.model.engine.explanation.rows import Row
from neuron_attribution_server.model.engine.explanation.sources import Sources

PARTS = {Kind.FFN: Part.FFN_VALUE_NEURONS, Kind.ATTENTION: Part.ATTENTION_VALUE_NEURONS}
SIGNS = {Direction.INCREASE: (1,), Direction.DECREASE: (-1,), Direction.BOTH: (1, -1)}


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
    columns = (column[:k].tolist() for column in (found.ranked.scores, found.coefficients))
    neurons = tuple(
        NeuronScore(neuron, score, position if placed else None, coefficient, None, side(coefficient))
        for (neuron, position), score, coefficient in zip(
            named(view, wanted.kind, found.neurons.locate(found.ranked.ids[:k])), *columns, strict=True
        )
    )
    total = found.neurons.total(wanted.row)
    return NeuronRanking(neurons, Coverage(total, total, found.ranked.scored, found.exact))


def strongest_sources(found: Found, kind: Kind, k: int, explained: int) -> Sources:
    """The first k found neurons as query sources; FFN neurons read at the explained position."""
    layers, units, positions = found.neurons.locate(found.ranked.ids[:k])
    read = positions if kind is Kind.ATTENTION else np.full_like(positions, explained)
    return Sources(layers, units, read, found.ranked.scores[:k])


def side(coefficient: float) -> PromotedSide:
    """Which end of its projection a neuron with this coefficient raises."""
    if coefficient == 0:
        return PromotedSide.UNKNOWN
    return PromotedSide.TOP if coefficient > 0 else PromotedSide.BOTTOM


def named(view: ModelView, kind: Kind, located: tuple[Ids, Ids, Ids]) -> list[tuple[Neuron, int]]:
    """The neurons at layers, units and positions, and the positions."""
    columns = (column.tolist() for column in located)
    size = view.sizes.head_size
    return [
        (view.ffn_neuron(layer, unit) if kind is Kind.FFN else AttentionNeuron(layer, *divmod(unit, size)), position)
        for layer, unit, position in zip(*columns, strict=True)
    ]
