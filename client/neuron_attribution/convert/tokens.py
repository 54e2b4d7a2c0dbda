"""Tokens and the answer to a tokenization."""

from __future__ import annotations

from collections.abc import Iterable

from neuron_attribution.convert.asking.conversations import origins_from_proto
from neuron_attribution.convert.identity import model_identity_from_proto, model_identity_to_proto
from neuron_attribution.results import Token, TokenizedToken, TokenizeResult, TokenPrediction
from neuron_attribution.v1 import neuron_attribution_pb2 as messages


def token_to_proto(token: Token) -> messages.Token:
    """Write a token."""
    return messages.Token(id=token.id, text=token.text)


def token_from_proto(message: messages.Token) -> Token:
    """Read a token."""
    return Token(message.id, message.text)


def tokens_from_proto(tokens: Iterable[messages.Token]) -> tuple[Token, ...]:
    """Read tokens."""
    return tuple(token_from_proto(token) for token in tokens)


def prediction_to_proto(prediction: TokenPrediction) -> messages.TokenPrediction:
    """Write a token's prediction."""
    return messages.TokenPrediction(
        token=token_to_proto(prediction.token),
        probability=prediction.probability,
        log_probability=prediction.log_probability,
        rank=prediction.rank,
    )


def prediction_from_proto(message: messages.TokenPrediction) -> TokenPrediction:
    """Read a token's prediction."""
    return TokenPrediction(
        token=token_from_proto(message.token),
        probability=message.probability,
        log_probability=message.log_probability,
        rank=message.rank,
    )


def tokenize_result_to_proto(result: TokenizeResult) -> messages.TokenizeResponse:
    """Write the answer to a tokenization, in place: apart, its many messages would take several times the memory."""
    message = messages.TokenizeResponse(model=model_identity_to_proto(result.model))
    for item in result.tokens:
        written = message.tokens.add(start=item.start, end=item.end)
        written.token.id, written.token.text = item.token.id, item.token.text
    for origin in result.origins:
        message.origins.add(message=origin.message, role=origin.role, template=origin.template)
    message.text = result.text
    return message


def tokenize_result_from_proto(message: messages.TokenizeResponse) -> TokenizeResult:
    """Read the answer to a tokenization."""
    return TokenizeResult(
        model=model_identity_from_proto(message.model),
        tokens=tuple(TokenizedToken(token_from_proto(item.token), item.start, item.end) for item in message.tokens),
        origins=origins_from_proto(message.origins),
        text=message.text,
    )
