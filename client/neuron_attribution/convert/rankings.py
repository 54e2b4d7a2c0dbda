"""Scores of neurons, rankings and their coverage, query layers.

They are written in place: a message that becomes part of another is copied, and these are large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from neuron_attribution.convert.enums import COMPONENT_KINDS, PROMOTED_SIDES
from neuron_attribution.convert.neurons import neuron_from_proto
from neuron_attribution.convert.projections import projection_from_proto, projection_to_proto
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.results import (
    ComponentKind,
    Coverage,
    NeuronRanking,
    NeuronScore,
    ProjectedRank,
    PromotedSide,
    QueryLayer,
    QueryLayers,
)
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

_KINDS = {kind.value: COMPONENT_KINDS.encode(kind) for kind in ComponentKind}
"""By the members' values, which are hashed faster than the members."""


Walk = Callable[[Iterable[NeuronScore]], Iterable[NeuronScore]]
"""Goes through neurons one by one, and may do something between them."""


def write_ranking(ranking: NeuronRanking, message: messages.NeuronRanking, walk: Walk = iter) -> None:
    """Write a ranking into its message."""
    for neuron in walk(ranking.neurons):
        write_neuron_score(neuron, message.neurons.add())
    coverage = ranking.coverage
    message.coverage.neurons = coverage.neurons
    message.coverage.bounded = coverage.bounded
    message.coverage.scored = coverage.scored
    message.coverage.exact = coverage.exact


def ranking_from_proto(message: messages.NeuronRanking) -> NeuronRanking:
    """Read a ranking."""
    coverage = message.coverage
    return NeuronRanking(
        neurons=tuple(neuron_score_from_proto(neuron) for neuron in message.neurons),
        coverage=Coverage(coverage.neurons, coverage.bounded, coverage.scored, coverage.exact),
    )


def write_neuron_score(score: NeuronScore, message: messages.NeuronScore) -> None:
    """Write a neuron's score into its message."""
    neuron = score.neuron
    if isinstance(neuron, FfnNeuron):
        ffn = message.neuron.ffn
        ffn.layer, ffn.index = neuron.layer, neuron.index
        if neuron.expert is not None:
            ffn.expert = neuron.expert
    else:
        attention = message.neuron.attention
        attention.layer, attention.head, attention.index = neuron.layer, neuron.head, neuron.index
    message.score = score.score
    if score.position is not None:
        message.position = score.position
    if score.coefficient is not None:
        message.coefficient = score.coefficient
    if score.projection is not None:
        message.projection.CopyFrom(projection_to_proto(score.projection))
    message.promoted_side = PROMOTED_SIDES.encode(score.promoted_side)
    for stands, destination in ((score.target, message.target), (score.contrast, message.contrast)):
        if stands is not None:
            destination.score, destination.rank = stands.score, stands.rank
    if score.activity is not None:
        message.activity = score.activity
    message.token_scores.extend(score.token_scores)
    message.token_coefficients.extend(score.token_coefficients)


def neuron_score_from_proto(message: messages.NeuronScore) -> NeuronScore:
    """Read a neuron's score. A side only a newer server knows is unknown here."""
    side = message.promoted_side
    return NeuronScore(
        neuron=neuron_from_proto(message.neuron),
        score=message.score,
        position=message.position if message.HasField("position") else None,
        coefficient=message.coefficient if message.HasField("coefficient") else None,
        projection=projection_from_proto(message.projection) if message.HasField("projection") else None,
        promoted_side=PROMOTED_SIDES.from_result(side) if PROMOTED_SIDES.known(side) else PromotedSide.UNKNOWN,
        target=_rank_from_proto(message.target) if message.HasField("target") else None,
        contrast=_rank_from_proto(message.contrast) if message.HasField("contrast") else None,
        activity=message.activity if message.HasField("activity") else None,
        token_scores=tuple(message.token_scores),
        token_coefficients=tuple(message.token_coefficients),
    )


def write_query_layers(layers: QueryLayers, message: messages.QueryLayers) -> None:
    """Write query layers into their message."""
    add = message.layers.add
    for item in layers.layers:
        add(kind=_KINDS[item.kind.value], layer=item.layer, score=item.score)
    message.sources = layers.sources
    message.skipped_sources = layers.skipped_sources


def query_layers_from_proto(message: messages.QueryLayers) -> QueryLayers:
    """Read query layers."""
    return QueryLayers(
        layers=tuple(
            QueryLayer(COMPONENT_KINDS.from_result(item.kind), item.layer, item.score) for item in message.layers
        ),
        sources=message.sources,
        skipped_sources=message.skipped_sources,
    )


def _rank_from_proto(message: messages.ProjectedRank) -> ProjectedRank:
    return ProjectedRank(message.score, message.rank)
