"""Attributions: explanations, timings and the answer that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.convert.layers import (
    head_score_from_proto,
    head_score_to_proto,
    layer_scores_from_proto,
    layer_scores_to_proto,
    matrix_from_proto,
    matrix_to_proto,
)
from neuron_attribution.convert.rankings import (
    neuron_score_from_proto,
    neuron_score_to_proto,
    query_layers_from_proto,
    query_layers_to_proto,
    ranking_from_proto,
    ranking_to_proto,
)
from neuron_attribution.convert.tokens import (
    prediction_from_proto,
    prediction_to_proto,
    token_to_proto,
    tokens_from_proto,
)
from neuron_attribution.convert.values import duration, present, seconds, unless_none
from neuron_attribution.results import AttributeResult, Explanation, Timings, Token
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def attribute_result_to_proto(result: AttributeResult) -> messages.AttributeResponse:
    """Write an attribution."""
    return messages.AttributeResponse(
        model=model_identity_to_proto(result.model),
        tokens=[token_to_proto(token) for token in result.tokens],
        explanations=[explanation_to_proto(explanation) for explanation in result.explanations],
        timings=timings_to_proto(result.timings),
    )


def complete_attribution(
    message: messages.AttributeResponse, tokens: Sequence[Token], queue: float, tokenization: float
) -> None:
    """Add to a response from the worker what only the front end knows: the tokens and its own times, in seconds."""
    message.tokens.extend(token_to_proto(token) for token in tokens)
    message.timings.queue.CopyFrom(duration(queue))
    message.timings.tokenization.CopyFrom(duration(tokenization))


def attribute_result_from_proto(message: messages.AttributeResponse) -> AttributeResult:
    """Read an attribution."""
    return AttributeResult(
        model=model_identity_from_proto(message.model),
        tokens=tokens_from_proto(message.tokens),
        explanations=tuple(explanation_from_proto(explanation) for explanation in message.explanations),
        timings=timings_from_proto(message.timings),
    )


def explanation_to_proto(explanation: Explanation) -> messages.Explanation:
    """Write the explanation of one prediction."""
    rankings = {
        name: unless_none(getattr(explanation, name), ranking_to_proto)
        for name in (
            "ffn_value_neurons",
            "ffn_value_neurons_decreasing",
            "attention_value_neurons",
            "attention_value_neurons_decreasing",
            "query_ffn_neurons",
            "query_ffn_neurons_decreasing",
        )
    }
    return messages.Explanation(
        position=explanation.position,
        target=prediction_to_proto(explanation.target),
        contrast=unless_none(explanation.contrast, prediction_to_proto),
        predictions=[prediction_to_proto(prediction) for prediction in explanation.predictions],
        layers=unless_none(explanation.layers, layer_scores_to_proto),
        head_scores=unless_none(explanation.head_scores, matrix_to_proto),
        heads=[head_score_to_proto(head) for head in explanation.heads],
        heads_decreasing=[head_score_to_proto(head) for head in explanation.heads_decreasing],
        ffn_query_layers=unless_none(explanation.ffn_query_layers, query_layers_to_proto),
        attention_query_layers=unless_none(explanation.attention_query_layers, query_layers_to_proto),
        neurons=[neuron_score_to_proto(neuron) for neuron in explanation.neurons],
        **rankings,
    )


def explanation_from_proto(message: messages.Explanation) -> Explanation:
    """Read the explanation of one prediction."""
    return Explanation(
        position=message.position,
        target=prediction_from_proto(message.target),
        contrast=present(message, "contrast", prediction_from_proto),
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
    )
