"""Prompts, completions and chosen tokens: text or token ids, and of prompts conversations."""

from __future__ import annotations

from neuron_attribution.conversations.messages import Conversation, Prompt
from neuron_attribution.convert.asking.conversations import conversation_from_proto, conversation_to_proto
from neuron_attribution.convert.values import not_empty, unicode_text, unsigned
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import Span
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

TextOrIds = str | tuple[int, ...]
_USED_AS_GIVEN = {
    "token_ids": "token ids, which are used exactly as given",
    "conversation": "a conversation, whose template writes them",
}


def prompt_to_proto(prompt: Prompt, add_special_tokens: bool | None) -> messages.Prompt:
    """Write a prompt."""
    message = messages.Prompt()
    if isinstance(prompt, str):
        message.text = unicode_text(prompt, "prompt.text")
    elif isinstance(prompt, Conversation):
        message.conversation.CopyFrom(conversation_to_proto(prompt, "prompt.conversation"))
    else:
        message.token_ids.CopyFrom(_ids_to_proto(prompt, "prompt"))
    if add_special_tokens is not None:
        message.add_special_tokens = add_special_tokens
    return message


def prompt_from_proto(message: messages.Prompt) -> tuple[Prompt, bool | None]:
    """Read a prompt and whether special tokens are added to it."""
    source = message.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError.of("prompt.source", "is not set; set text, token_ids or conversation")
    if source == "conversation":
        prompt: Prompt = conversation_from_proto(message.conversation, "prompt.conversation")
    else:
        prompt = _source_from_proto(message, "prompt")
    add_special_tokens = message.add_special_tokens if message.HasField("add_special_tokens") else None
    if add_special_tokens is not None and source in _USED_AS_GIVEN:
        raise InvalidArgumentError.of(
            "prompt.add_special_tokens", f"is not allowed with {_USED_AS_GIVEN[source]}; leave it out"
        )
    return prompt, add_special_tokens


def completion_to_proto(completion: TextOrIds, field: str = "completion") -> messages.Completion:
    """Write a completion."""
    if isinstance(completion, str):
        return messages.Completion(text=unicode_text(completion, f"{field}.text"))
    return messages.Completion(token_ids=_ids_to_proto(completion, field))


def completion_from_proto(message: messages.Completion, field: str = "completion") -> TextOrIds:
    """Read a completion."""
    return _source_from_proto(message, field)


def span_to_proto(span: Span) -> messages.Span:
    """Write positions of a prompt."""
    return messages.Span(start=unsigned(span.start, "span.start"), end=unsigned(span.end, "span.end"))


def span_from_proto(message: messages.Span) -> Span:
    """Read positions of a prompt, at least one, without the first, which nothing predicts."""
    if message.start < 1:
        raise InvalidArgumentError.of(
            "span.start", "is 0, but nothing predicts the first token of a prompt; give at least 1"
        )
    if message.end <= message.start:
        raise InvalidArgumentError.of(
            "span.end", f"{message.end} is not behind span.start, {message.start}; it is the position after the last"
        )
    return Span(message.start, message.end)


def token_choice_to_proto(token: str | int, field: str) -> messages.TokenChoice:
    """Write a token's text or id."""
    if isinstance(token, str):
        return messages.TokenChoice(text=unicode_text(token, f"{field}.text"))
    return messages.TokenChoice(id=unsigned(token, f"{field}.id"))


def token_choice_from_proto(message: messages.TokenChoice, field: str) -> str | int:
    """Read a token's text or id."""
    match message.WhichOneof("choice"):
        case "text":
            return not_empty(message.text, f"{field}.text")
        case "id":
            return message.id
    raise InvalidArgumentError.of(f"{field}.choice", "names no token; set either text or id")


def _source_from_proto(message: messages.Prompt | messages.Completion, field: str) -> TextOrIds:
    match message.WhichOneof("source"):
        case "text":
            return not_empty(message.text, f"{field}.text")
        case "token_ids" if message.token_ids.ids:
            return tuple(message.token_ids.ids)
        case "token_ids":
            raise InvalidArgumentError.of(f"{field}.token_ids", "is empty; give at least one token")
    raise InvalidArgumentError.of(f"{field}.source", "is not set; set either text or token_ids")


def _ids_to_proto(ids: tuple[int, ...], field: str) -> messages.TokenIds:
    return messages.TokenIds(ids=[unsigned(id, f"{field}.token_ids.ids[{index}]") for index, id in enumerate(ids)])
