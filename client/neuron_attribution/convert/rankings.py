"""Scores of neurons, rankings and their coverage, query layers."""

from __future__ import annotations

from neuron_attribution.convert.enums import COMPONENT_KINDS, PROMOTED_SIDES
from neuron_attribution.convert.neurons import neuron_from_proto, neuron_to_proto
from neuron_attribution.convert.projections import projection_from_proto, projection_to_proto
from neuron_attribution.convert.values import present, unless_none
from neuron_attribution.results import Coverage, NeuronRanking, NeuronScore, PromotedSide, QueryLayer, QueryLayers
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def ranking_to_proto(ranking: NeuronRanking) -> messages.NeuronRanking:
    """Write a ranking."""
    coverage = ranking.coverage
    return messages.NeuronRanking(
        neurons=[neuron_score_to_proto(neuron) for neuron in ranking.neurons],
        coverage=messages.Coverage(
            neurons=coverage.neurons, bounded=coverage.bounded, scored=coverage.scored, exact=coverage.exact
        ),
    )


def ranking_from_proto(message: messages.NeuronRanking) -> NeuronRanking:
    """Read a ranking."""
    coverage = message.coverage
    return NeuronRanking(
        neurons=tuple(neuron_score_from_proto(neuron) for neuron in message.neurons),
        coverage=Coverage(coverage.neurons, coverage.bounded, coverage.scored, coverage.exact),
    )


def neuron_score_to_proto(score: NeuronScore) -> messages.NeuronScore:
    """Write a neuron's score."""
    return messages.NeuronScore(
        neuron=neuron_to_proto(score.neuron),
        position=score.position,
        score=score.score,
        coefficient=score.coefficient,
        projection=unless_none(score.projection, projection_to_proto),
        promoted_side=PROMOTED_SIDES.encode(score.promoted_side),
    )


def neuron_score_from_proto(message: messages.NeuronScore) -> NeuronScore:
    """Read a neuron's score. A side only a newer server knows is unknown here."""
    side = message.promoted_side
    return NeuronScore(
        neuron=neuron_from_proto(message.neuron),
        score=message.score,
        position=present(message, "position", int),
        coefficient=present(message, "coefficient", float),
        projection=present(message, "projection", projection_from_proto),
        promoted_side=PROMOTED_SIDES.from_result(side) if PROMOTED_SIDES.known(side) else PromotedSide.UNKNOWN,
    )


def query_layers_to_proto(layers: QueryLayers) -> messages.QueryLayers:
    """Write query layers."""
    return messages.QueryLayers(
        layers=[
            messages.QueryLayer(kind=COMPONENT_KINDS.encode(item.kind), layer=item.layer, score=item.score)
            for item in layers.layers
        ],
        sources=layers.sources,
        skipped_sources=layers.skipped_sources,
    )


def query_layers_from_proto(message: messages.QueryLayers) -> QueryLayers:
    """Read query layers."""
    return QueryLayers(
        layers=tuple(
            QueryLayer(COMPONENT_KINDS.from_result(item.kind), item.layer, item.score) for item in message.layers
        ),
        sources=message.sources,
        skipped_sources=message.skipped_sources,
    )
