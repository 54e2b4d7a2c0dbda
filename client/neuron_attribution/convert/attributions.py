"""Attributions: explanations, timings and the answer that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.convert.aggregates import aggregate_explanation_from_proto, write_aggregate
from neuron_attribution.convert.asking.conversations import origins_from_proto, origins_to_proto
from neuron_attribution.convert.asking.generations import generation_from_proto, generation_to_proto
from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.layers import (
    head_score_from_proto,
    layer_scores_from_proto,
    layer_scores_to_proto,
    matrix_from_proto,
    matrix_to_proto,
    tensor_from_proto,
    tensor_to_proto,
    write_head_score,
)
from neuron_attribution.convert.rankings import (
    Walk,
    neuron_score_from_proto,
    query_layers_from_proto,
    ranking_from_proto,
    write_neuron_score,
    write_query_layers,
    write_ranking,
)
from neuron_attribution.convert.tokens import (
    prediction_from_proto,
    prediction_to_proto,
    token_to_proto,
    tokens_from_proto,
)
from neuron_attribution.convert.values import duration, present, seconds, unless_none
from neuron_attribution.generation import Generation
from neuron_attribution.results import AggregateExplanation, AttributeResult, Explanation, ModelIdentity, Timings, Token
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

Bytes = bytes | memoryview

_RESPONSE_FIELD = messages.AttributeStreamResponse.DESCRIPTOR.fields_by_name["response"].number
_EXPLANATIONS_FIELD = messages.AttributeResponse.DESCRIPTOR.fields_by_name["explanations"].number
_AGGREGATE_FIELD = messages.AttributeResponse.DESCRIPTOR.fields_by_name["aggregate"].number
_EMBEDDED = 2
_RANKINGS = (
    "ffn_value_neurons",
    "ffn_value_neurons_decreasing",
    "attention_value_neurons",
    "attention_value_neurons_decreasing",
    "query_ffn_neurons",
    "query_ffn_neurons_decreasing",
)
_QUERY_LAYERS = ("ffn_query_layers", "attention_query_layers")


def attribute_result_to_proto(result: AttributeResult) -> messages.AttributeResponse:
    """Write an attribution."""
    message = explanations_to_proto(result.model, result.explanations, result.aggregate, generation=result.generation)
    message.tokens.extend(map(token_to_proto, result.tokens))
    message.timings.CopyFrom(timings_to_proto(result.timings))
    message.origins.extend(origins_to_proto(result.origins))
    return message


def explanations_to_proto(
    model: ModelIdentity,
    explanations: Sequence[Explanation],
    aggregate: AggregateExplanation | None = None,
    walk: Walk = iter,
    generation: Generation | None = None,
) -> messages.AttributeResponse:
    """Write an attribution without tokens and times; `walk` goes through the neurons of its rankings."""
    message = messages.AttributeResponse(
        model=model_identity_to_proto(model), generation=unless_none(generation, generation_to_proto)
    )
    for explanation in explanations:
        _write_explanation(explanation, message.explanations.add(), walk)
    if aggregate is not None:
        write_aggregate(aggregate, message.aggregate, walk)
    return message


def serialized_token(token: Token) -> bytes:
    """A serialized response that holds one token and nothing else."""
    return messages.AttributeResponse(tokens=(token_to_proto(token),)).SerializeToString()


def completed_attribution(
    response: bytes, tokens: Iterable[bytes], timings: Timings, origins: Iterable[TokenOrigin] = ()
) -> tuple[bytes, bytes]:
    """A serialized response without tokens and times, and what completes it, with tokens that are serialized already.

    Nothing is parsed or copied: serialized messages that follow one another are one message, merged.
    """
    rest = messages.AttributeResponse(timings=timings_to_proto(timings), origins=origins_to_proto(origins))
    return response, b"".join((*tokens, rest.SerializeToString()))


def stream_answer(key: str, response: Sequence[Bytes], remaining: int = 0) -> bytes:
    """A serialized AttributeStreamResponse that holds the parts of a serialized response, which are not parsed.

    An embedded message is its field's tag, its length and its bytes (protobuf's encoding, wire type 2).
    """
    rest = messages.AttributeStreamResponse(key=key, remaining=remaining).SerializeToString()
    length = sum(map(len, response))
    return b"".join((rest, _varint(_RESPONSE_FIELD << 3 | _EMBEDDED), _varint(length), *response))


def explanations_apart(response: bytes) -> tuple[list[Bytes], list[Bytes]]:
    """Parts of a serialized response: those that all explanations share, and each explanation, the last of which has
    the aggregate with it, if there is one. Nothing but that is copied.

    A serialized AttributeResponse has embedded messages only.
    """
    shared: list[Bytes] = []
    explanations: list[Bytes] = []
    aggregate: list[Bytes] = []
    parts = {_EXPLANATIONS_FIELD: explanations, _AGGREGATE_FIELD: aggregate}
    whole, start = memoryview(response), 0
    while start < len(response):
        tag, place = _read_varint(response, start)
        length, place = _read_varint(response, place)
        parts.get(tag >> 3, shared).append(whole[start : place + length])
        start = place + length
    if aggregate:
        explanations[-1:] = [b"".join((*explanations[-1:], *aggregate))]
    return shared, explanations


def attribute_result_from_proto(message: messages.AttributeResponse) -> AttributeResult:
    """Read an attribution."""
    return AttributeResult(
        model=model_identity_from_proto(message.model),
        tokens=tokens_from_proto(message.tokens),
        explanations=tuple(explanation_from_proto(explanation) for explanation in message.explanations),
        timings=timings_from_proto(message.timings),
        generation=present(message, "generation", generation_from_proto),
        origins=origins_from_proto(message.origins),
        aggregate=present(message, "aggregate", aggregate_explanation_from_proto),
    )


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    number = shift = 0
    while data[place] & 0x80:
        number |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return number | data[place] << shift, place + 1


def _write_explanation(explanation: Explanation, message: messages.Explanation, walk: Walk) -> None:
    message.position = explanation.position
    message.target.CopyFrom(prediction_to_proto(explanation.target))
    if explanation.contrast is not None:
        message.contrast.CopyFrom(prediction_to_proto(explanation.contrast))
    if explanation.spaced_target is not None:
        message.spaced_target.CopyFrom(prediction_to_proto(explanation.spaced_target))
    message.predictions.extend(map(prediction_to_proto, explanation.predictions))
    if explanation.layers is not None:
        message.layers.CopyFrom(layer_scores_to_proto(explanation.layers))
    if explanation.head_scores is not None:
        message.head_scores.CopyFrom(matrix_to_proto(explanation.head_scores))
    for head in explanation.heads:
        write_head_score(head, message.heads.add())
    for head in explanation.heads_decreasing:
        write_head_score(head, message.heads_decreasing.add())
    for name in _RANKINGS:
        ranking = getattr(explanation, name)
        if ranking is not None:
            write_ranking(ranking, getattr(message, name), walk)
    for name in _QUERY_LAYERS:
        layers = getattr(explanation, name)
        if layers is not None:
            write_query_layers(layers, getattr(message, name))
    for neuron in explanation.neurons:
        write_neuron_score(neuron, message.neurons.add())
    message.final_norm_scale = explanation.final_norm_scale
    if explanation.attention_patterns is not None:
        message.attention_patterns.CopyFrom(tensor_to_proto(explanation.attention_patterns))


def explanation_from_proto(message: messages.Explanation) -> Explanation:
    """Read the explanation of one prediction."""
    return Explanation(
        position=message.position,
        target=prediction_from_proto(message.target),
        contrast=present(message, "contrast", prediction_from_proto),
        spaced_target=present(message, "spaced_target", prediction_from_proto),
        predictions=tuple(prediction_from_proto(prediction) for prediction in message.predictions),
        layers=present(message, "layers", layer_scores_from_proto),
        head_scores=present(message, "head_scores", matrix_from_proto),
        heads=tuple(head_score_from_proto(head) for head in message.heads),
        heads_decreasing=tuple(head_score_from_proto(head) for head in message.heads_decreasing),
        ffn_value_neurons=present(message, "ffn_value_neurons", ranking_from_proto),
        ffn_value_neurons_decreasing=present(message, "ffn_value_neurons_decreasing", ranking_from_proto),
        attention_value_neurons=present(message, "attention_value_neurons", ranking_from_proto),
        attention_value_neurons_decreasing=present(message, "attention_value_neurons_decreasing", ranking_from_proto),
        ffn_query_layers=present(message, "ffn_query_layers", query_layers_from_proto),
        attention_query_layers=present(message, "attention_query_layers", query_layers_from_proto),
        query_ffn_neurons=present(message, "query_ffn_neurons", ranking_from_proto),
        query_ffn_neurons_decreasing=present(message, "query_ffn_neurons_decreasing", ranking_from_proto),
        neurons=tuple(neuron_score_from_proto(neuron) for neuron in message.neurons),
        final_norm_scale=message.final_norm_scale,
        attention_patterns=present(message, "attention_patterns", tensor_from_proto),
    )


def timings_to_proto(timings: Timings) -> messages.Timings:
    """Write timings."""
    return messages.Timings(
        queue=duration(timings.queue),
        tokenization=duration(timings.tokenization),
        forward=duration(timings.forward),
        scoring=duration(timings.scoring),
        batch_requests=timings.batch_requests,
        batch_tokens=timings.batch_tokens,
        cached=timings.cached,
        predicted=duration(timings.predicted),
    )


def timings_from_proto(message: messages.Timings) -> Timings:
    """Read timings."""
    return Timings(
        queue=seconds(message.queue),
        tokenization=seconds(message.tokenization),
        forward=seconds(message.forward),
        scoring=seconds(message.scoring),
        batch_requests=message.batch_requests,
        batch_tokens=message.batch_tokens,
        cached=message.cached,
        predicted=seconds(message.predicted),
    )
