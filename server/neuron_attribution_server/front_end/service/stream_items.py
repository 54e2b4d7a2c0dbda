"""One item of a stream of attributions: what it asks, and its answers, which are built when it is their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import Message
from neuron_attribution import convert
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError
from neuron_attribution.transport.status import to_item_error
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

from neuron_attribution_server.front_end.service.served_model import PreparedAttribution, ServedModel

Bytes = bytes | memoryview
Parts = tuple[Bytes, ...]
"""A serialized AttributeResponse, in parts that follow one another."""

_AROUND = 32
"""Bytes of an answer beside its key and its response, at most."""


@dataclass(frozen=True, slots=True)
class ReadItem:
    """An item that was read: ready for the queue, or why it is not."""

    key: str
    each_token: bool
    prepared: PreparedAttribution | Exception


def read_item(message: messages.AttributeStreamRequest, key_bytes: int, model: Callable[[], ServedModel]) -> ReadItem:
    """Read an item. What is wrong with it is answered under its key, or as much of that as is allowed."""
    key = message.key.encode()
    prepared: PreparedAttribution | Exception
    try:
        _check_key(len(key), key_bytes)
        prepared = model().prepare_attribution(message.request, reproducible=message.reproducible)
    except NeuronAttributionError as error:
        error.__context__ = error.__traceback__ = None  # they would keep the message
        prepared = error
    except Exception as error:
        prepared = error
    return ReadItem(key[:key_bytes].decode(errors="ignore"), message.each_token, prepared)


def has_conversation(message: Message) -> bool:
    """Whether the prompt of a request, or of the item that it is, must be rendered first."""
    match message:
        case messages.AttributeStreamRequest():
            return has_conversation(message.request)
        case messages.AttributeRequest() | messages.InterveneRequest() | messages.TraceRequest():
            return bool(message.prompt.WhichOneof("source") == "conversation")
        case messages.TokenizeRequest():
            return message.HasField("conversation")
    return False


def token_by_token(response: bytes, completion: bytes) -> list[Parts]:
    """The parts of one answer for each explanation, with all that they share; of one where there is none to part."""
    shared, explanations = convert.explanations_apart(response)
    return [(*shared, completion, explanation) for explanation in explanations or [b""]]


def largest_answer(key: str, answers: Sequence[Parts]) -> int:
    """Bytes of the largest of an item's answers, or a little more."""
    return _AROUND + len(key.encode()) + max(sum(map(len, parts)) for parts in answers)


def in_turn(key: str, answers: Sequence[Parts]) -> Iterator[Callable[[], bytes]]:
    """The answers of an item, each to be built when it is sent."""
    for remaining, parts in zip(reversed(range(len(answers))), answers, strict=True):
        yield partial(convert.stream_answer, key, parts, remaining)


def item_error(key: str, error: NeuronAttributionError) -> bytes:
    """The answer of an item that failed."""
    return messages.AttributeStreamResponse(key=key, error=to_item_error(error)).SerializeToString()


def _check_key(size: int, most: int) -> None:
    if size > most:
        raise InvalidArgumentError.of(
            "key", f"{size} bytes are over the limit {most}; give a shorter one: each answer repeats it"
        )
