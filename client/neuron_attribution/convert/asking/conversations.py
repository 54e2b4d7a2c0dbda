"""Conversations. What templates read beside contents is JSON, as text: its keys keep their order on the way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from neuron_attribution.conversations.messages import Conversation, Message, TokenOrigin
from neuron_attribution.convert.values import unicode_text
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

_OF_MESSAGES = frozenset({"role", "content"})
_ROLE_CHARACTERS = 64
_OF_TEMPLATES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


def conversation_to_proto(conversation: Conversation, field: str) -> messages.Conversation:
    """Write a conversation."""
    written = messages.Conversation(
        messages=[
            _message_to_proto(message, f"{field}.messages[{index}]")
            for index, message in enumerate(conversation.messages)
        ],
        continue_final_message=conversation.continue_final_message,
        arguments=_json(conversation.arguments, f"{field}.arguments"),
        template=unicode_text(conversation.template, f"{field}.template"),
        tools=[_json(tool, f"{field}.tools[{index}]") or "{}" for index, tool in enumerate(conversation.tools)],
    )
    if conversation.add_generation_prompt is not None:
        written.add_generation_prompt = conversation.add_generation_prompt
    return written


def conversation_from_proto(message: messages.Conversation, field: str) -> Conversation:
    """Read and check a conversation."""
    if not message.messages:
        raise InvalidArgumentError.of(f"{field}.messages", "is empty; give at least one message")
    asked = message.add_generation_prompt if message.HasField("add_generation_prompt") else None
    if asked and message.continue_final_message:
        raise InvalidArgumentError.of(
            f"{field}.add_generation_prompt",
            "begins an answer, and continue_final_message goes on with one; set one of them",
        )
    read = tuple(_message_from_proto(each, f"{field}.messages[{index}]") for index, each in enumerate(message.messages))
    if message.continue_final_message and not read[-1].content:
        raise InvalidArgumentError.of(
            f"{field}.messages[{len(read) - 1}].content", "is empty, and to be continued; give the part that is there"
        )
    return Conversation(
        messages=read,
        add_generation_prompt=asked,
        continue_final_message=message.continue_final_message,
        arguments=_object(message.arguments, f"{field}.arguments", _OF_TEMPLATES),
        template=message.template,
        tools=tuple(_object(tool, f"{field}.tools[{index}]") for index, tool in enumerate(message.tools)),
    )


def origins_to_proto(origins: Iterable[TokenOrigin]) -> list[messages.TokenOrigin]:
    """Write where tokens come from."""
    return [messages.TokenOrigin(message=each.message, role=each.role, template=each.template) for each in origins]


def origins_from_proto(origins: Iterable[messages.TokenOrigin]) -> tuple[TokenOrigin, ...]:
    """Read where tokens come from."""
    return tuple(
        TokenOrigin(each.message if each.HasField("message") else None, each.role, each.template) for each in origins
    )


def _message_to_proto(message: Message, field: str) -> messages.Message:
    return messages.Message(
        role=unicode_text(message.role, f"{field}.role"),
        content=None if message.content is None else unicode_text(message.content, f"{field}.content"),
        fields=_json(message.fields, f"{field}.fields"),
    )


def _message_from_proto(message: messages.Message, field: str) -> Message:
    if not message.role:
        raise InvalidArgumentError.of(f"{field}.role", 'is empty; give the one that speaks, such as "user"')
    if len(message.role) > _ROLE_CHARACTERS:
        raise InvalidArgumentError.of(f"{field}.role", f"is over {_ROLE_CHARACTERS} characters; give a shorter one")
    content = message.content if message.HasField("content") else None
    return Message(message.role, content, _object(message.fields, f"{field}.fields", _OF_MESSAGES))


def _json(value: Mapping[str, Any], field: str) -> str:
    """A mapping as JSON's text, which is empty where the mapping is."""
    if not isinstance(value, Mapping):
        raise InvalidArgumentError.of(field, f"{value!r} gives no name its value; write {{'name': value}}")
    try:
        written = json.dumps(dict(value), ensure_ascii=False) if value else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError.of(field, f"cannot be written as JSON: {error}") from None
    return unicode_text(written, field)


def _object(text: str, field: str, taken: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The JSON object in a text; an empty one for no text. Keys that are `taken` are refused."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidArgumentError.of(field, "is no JSON object; give one, as text")
    for name in sorted(taken & value.keys()):
        raise InvalidArgumentError.of(field, f"has {name!r}, which has a field of its own; set that")
    return value
