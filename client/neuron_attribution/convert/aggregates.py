"""Explained tokens taken together: what is asked for, and the explanation of a whole answer."""

from __future__ import annotations

from typing import Any

from neuron_attribution.convert.enums import AGGREGATES, PARTS
from neuron_attribution.convert.layers import (
    head_score_from_proto,
    layer_scores_from_proto,
    layer_scores_to_proto,
    matrix_from_proto,
    matrix_to_proto,
    write_head_score,
)
from neuron_attribution.convert.rankings import (
    Walk,
    neuron_score_from_proto,
    ranking_from_proto,
    write_neuron_score,
    write_ranking,
)
from neuron_attribution.convert.tokens import prediction_from_proto, prediction_to_proto
from neuron_attribution.convert.values import present
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import Aggregate, Part
from neuron_attribution.results import AGGREGATE_RANKINGS, AggregateExplanation
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

NOT_TOGETHER = frozenset({Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS, Part.ATTENTION_PATTERNS})
"""The parts that explanations of single tokens have alone."""
_PREDICTIONS = ("targets", "contrast_targets", "contrasts")


def aggregate_to_proto(aggregate: Aggregate | None) -> Any:  # noqa: ANN401 - as EnumTable.encode
    """Write how tokens are taken together."""
    return messages.AGGREGATE_UNSPECIFIED if aggregate is None else AGGREGATES.encode(aggregate)


def aggregate_from_proto(value: int) -> Aggregate | None:
    """Read how tokens are taken together."""
    return None if value == messages.AGGREGATE_UNSPECIFIED else AGGREGATES.from_request(value, "aggregate")


def check_aggregate(message: messages.AttributeRequest) -> None:
    """Refuse what goes with no aggregate, or goes with none at all. Raises InvalidArgumentError."""
    together = message.aggregate != messages.AGGREGATE_UNSPECIFIED
    if not together:
        given = {
            "aggregate_only": message.aggregate_only,
            "contrast_completion": message.HasField("contrast_completion"),
        }
        for field in (name for name, is_given in given.items() if is_given):
            raise InvalidArgumentError.of(field, "is for an aggregate; set aggregate to sum or mean as well")
        return
    if message.exhaustive:
        raise InvalidArgumentError.of(
            "exhaustive", "scores every neuron of single tokens only; leave it unset, or the aggregate"
        )
    if message.scoring_method > messages.SCORING_METHOD_LOG_PROBABILITY_INCREASE:
        raise InvalidArgumentError.of(
            "scoring_method", "only the log probability increase adds up over tokens; leave it or the aggregate out"
        )
    if message.HasField("contrast_completion"):
        _check_contrast_completion(message)
    for index, number in enumerate(message.parts):
        part = PARTS.from_request(number, f"parts[{index}]")
        if message.aggregate_only and part in NOT_TOGETHER:
            raise InvalidArgumentError.of(
                f"parts[{index}]", f"{part.value} is of single tokens; leave it out, or aggregate_only unset"
            )


def _check_contrast_completion(message: messages.AttributeRequest) -> None:
    if message.HasField("contrast"):
        raise InvalidArgumentError.of(
            "contrast_completion", "and contrast exclude each other: the one is an answer, the other a token"
        )
    if message.WhichOneof("explain") != "completion":
        raise InvalidArgumentError.of(
            "contrast_completion", "is what a completion is compared with; give the answer as completion"
        )


def write_aggregate(aggregate: AggregateExplanation, message: messages.AggregateExplanation, walk: Walk) -> None:
    """Write the explanation of several tokens together into its message."""
    message.aggregate = AGGREGATES.encode(aggregate.aggregate)
    message.log_probability = aggregate.log_probability
    message.contrast_log_probability = aggregate.contrast_log_probability
    message.positions.extend(aggregate.positions)
    for name in _PREDICTIONS:
        getattr(message, name).extend(map(prediction_to_proto, getattr(aggregate, name)))
    if aggregate.layers is not None:
        message.layers.CopyFrom(layer_scores_to_proto(aggregate.layers))
    if aggregate.head_scores is not None:
        message.head_scores.CopyFrom(matrix_to_proto(aggregate.head_scores))
    for name in ("heads", "heads_decreasing"):
        for head in getattr(aggregate, name):
            write_head_score(head, getattr(message, name).add())
    for name in AGGREGATE_RANKINGS:
        ranking = getattr(aggregate, name)
        if ranking is not None:
            write_ranking(ranking, getattr(message, name), walk)
    for neuron in aggregate.neurons:
        write_neuron_score(neuron, message.neurons.add())


def aggregate_explanation_from_proto(message: messages.AggregateExplanation) -> AggregateExplanation:
    """Read the explanation of several tokens together."""
    by_name: dict[str, Any] = {name: tuple(map(prediction_from_proto, getattr(message, name))) for name in _PREDICTIONS}
    by_name |= {name: present(message, name, ranking_from_proto) for name in AGGREGATE_RANKINGS}
    return AggregateExplanation(
        aggregate=AGGREGATES.from_result(message.aggregate),
        log_probability=message.log_probability,
        contrast_log_probability=message.contrast_log_probability,
        positions=tuple(message.positions),
        layers=present(message, "layers", layer_scores_from_proto),
        head_scores=present(message, "head_scores", matrix_from_proto),
        heads=tuple(map(head_score_from_proto, message.heads)),
        heads_decreasing=tuple(map(head_score_from_proto, message.heads_decreasing)),
        neurons=tuple(map(neuron_score_from_proto, message.neurons)),
        **by_name,
    )
