"""Messages from JSON and to JSON. Python does that slowly, so how much there is to do is looked at before."""

from __future__ import annotations

from google.protobuf import json_format
from google.protobuf.message import Message
from neuron_attribution.errors import InvalidArgumentError, ResourceExhaustedError

from neuron_attribution_server.settings.config import ServerConfig

ANSWER_BYTES = 8 * 2**20
"""The largest answer, serialized, that becomes JSON: that takes about 5 seconds and 50 times its size in memory."""

JSON_LENGTH = 4
"""How many times longer than a serialized message its JSON is, roughly."""

_SEPARATORS = (b",", b"[", b"{")


def most_values(config: ServerConfig) -> int:
    """More values than the JSON of any request within the limits has; a neuron or an intervention has up to eight."""
    neurons = config.maximum_neurons * (config.maximum_intervention_sets + 2)
    return 1000 + config.maximum_tokens + config.maximum_explained_tokens + 8 * neurons


def parsed(body: bytes, kind: type[Message], most: int) -> bytes:
    """The serialized message of a request's JSON. Raises InvalidArgumentError, unread where it has over `most` values.

    A value takes a microsecond.
    """
    if _separators(body) > most and _separators(_without_texts(body)) > most:
        raise InvalidArgumentError(f"the request's JSON has more than {most} values, too many for any request here")
    try:
        return json_format.Parse(body, kind()).SerializeToString()
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"the request is not the protobuf JSON of {kind.DESCRIPTOR.name}: {error}", reason="MALFORMED_MESSAGE"
        ) from None


def written(answer: bytes, kind: type[Message]) -> str:
    """The JSON of a serialized message."""
    return json_format.MessageToJson(
        kind.FromString(answer),
        indent=None,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


def check_answer(answer: bytes) -> None:
    """Refuse to write an answer that is too large. Raises ResourceExhaustedError."""
    if len(answer) > ANSWER_BYTES:
        raise ResourceExhaustedError(
            f"the answer has {len(answer)} bytes, over the limit {ANSWER_BYTES} of answers as JSON; ask for fewer "
            "explained tokens, parts, neurons, sets or projected tokens, or ask by gRPC",
            reason="RESPONSE_TOO_LARGE",
        )


def _separators(body: bytes) -> int:
    """The values of a JSON text without texts in it: each but the first comes after a comma or opens something."""
    return sum(map(body.count, _SEPARATORS))


def _without_texts(body: bytes) -> bytes:
    """What stands outside of quotation marks."""
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
