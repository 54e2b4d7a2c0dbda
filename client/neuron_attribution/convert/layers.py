"""Scores of layers and of heads, and what heads do at their source positions."""

from __future__ import annotations

import numpy as np

from neuron_attribution.convert.neurons import head_from_proto
from neuron_attribution.convert.projections import projection_from_proto, projection_to_proto
from neuron_attribution.convert.values import numbers, scores
from neuron_attribution.errors import InternalError
from neuron_attribution.results import HeadPosition, HeadScore, LayerScores, Scores
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

_FLOAT32 = "float32"


def layer_scores_to_proto(layers: LayerScores) -> messages.LayerScores:
    """Write the scores of layers."""
    return messages.LayerScores(
        attention=numbers(layers.attention),
        ffn=numbers(layers.ffn),
        embedding_log_probability=layers.embedding_log_probability,
        final_log_probability=layers.final_log_probability,
        remainder=layers.remainder,
    )


def layer_scores_from_proto(message: messages.LayerScores) -> LayerScores:
    """Read the scores of layers."""
    return LayerScores(
        attention=scores(message.attention),
        ffn=scores(message.ffn),
        embedding_log_probability=message.embedding_log_probability,
        final_log_probability=message.final_log_probability,
        remainder=message.remainder,
    )


def matrix_to_proto(matrix: Scores) -> messages.Matrix:
    """Write a matrix."""
    return messages.Matrix(shape=matrix.shape, values=numbers(matrix))


def matrix_from_proto(message: messages.Matrix) -> Scores:
    """Read a matrix."""
    return scores(message.values).reshape(tuple(message.shape))


def tensor_to_proto(tensor: Scores) -> messages.Tensor:
    """Write many numbers."""
    return messages.Tensor(dtype=_FLOAT32, shape=tensor.shape, data=np.ascontiguousarray(tensor, "<f4").tobytes())


def tensor_from_proto(message: messages.Tensor) -> Scores:
    """Read many numbers."""
    if message.dtype != _FLOAT32:
        raise InternalError(f"the server answered with numbers of type {message.dtype!r}; upgrade neuron-attribution")
    return np.frombuffer(message.data, "<f4").reshape(tuple(message.shape)).astype(np.float32)


def write_head_score(head: HeadScore, message: messages.HeadScore) -> None:
    """Write a head's scores into their message."""
    message.head.layer, message.head.head = head.head.layer, head.head.head
    message.score = head.score
    message.position_scores.extend(numbers(head.position_scores))
    message.attention_weights.extend(numbers(head.attention_weights))
    message.positions.extend(map(_head_position_to_proto, head.positions))
    message.token_scores.extend(head.token_scores)


def head_score_from_proto(message: messages.HeadScore) -> HeadScore:
    """Read a head's scores."""
    return HeadScore(
        head=head_from_proto(message.head),
        score=message.score,
        position_scores=scores(message.position_scores),
        attention_weights=scores(message.attention_weights),
        positions=tuple(_head_position_from_proto(position) for position in message.positions),
        token_scores=tuple(message.token_scores),
    )


def _head_position_to_proto(position: HeadPosition) -> messages.HeadPosition:
    return messages.HeadPosition(
        position=position.position,
        layer_input=projection_to_proto(position.layer_input),
        key=projection_to_proto(position.key),
        value_output=projection_to_proto(position.value_output),
    )


def _head_position_from_proto(message: messages.HeadPosition) -> HeadPosition:
    return HeadPosition(
        position=message.position,
        layer_input=projection_from_proto(message.layer_input),
        key=projection_from_proto(message.key),
        value_output=projection_from_proto(message.value_output),
    )
