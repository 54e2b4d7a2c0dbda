"""Conversations as callers write them: messages of the shape that OpenAI's interface has, or Message objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from neuron_attribution.conversations.messages import Conversation, Message, Prompt
from neuron_attribution.errors import InvalidArgumentError

TextOrIds = str | Sequence[int]
PromptLike = TextOrIds | Conversation
MessageLike = Message | Mapping[str, Any]


class ConversationArguments(TypedDict, total=False):
    """What stands in place of a prompt: messages, and how the model's chat template makes a text of them.

    A message is {"role": "user", "content": "Hi"}, with whatever else the template reads. Its content may be a list of
    texts: [{"type": "text", "text": "Hi"}]. The others are the fields of Conversation.
    """

    messages: Iterable[MessageLike]
    tools: Iterable[Mapping[str, Any]]
    template_arguments: Mapping[str, Any]
    chat_template: str
    add_generation_prompt: bool | None
    continue_final_message: bool


def conversation(
    messages: Iterable[MessageLike],
    *,
    tools: Iterable[Mapping[str, Any]] | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    chat_template: str = "",
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
) -> Conversation:
    """The conversation that these arguments describe. Raises InvalidArgumentError that names the message."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise InvalidArgumentError.of("messages", f"{messages!r} is no list; write [{{'role': 'user', 'content': …}}]")
    return Conversation(
        tuple(_message(each, f"messages[{index}]") for index, each in enumerate(messages)),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        arguments=dict(template_arguments or {}),
        template=chat_template,
        tools=tuple(tools or ()),
    )


def read_prompt(prompt: PromptLike | None, arguments: dict[str, Any], field: str = "prompt") -> Prompt:
    """The prompt that is given, or the one that `arguments` describe, which are taken out of there.

    Raises InvalidArgumentError where there is none, or both.
    """
    given = {name: arguments.pop(name) for name in ConversationArguments.__annotations__ if name in arguments}
    if "messages" in given:
        if prompt is not None:
            raise InvalidArgumentError.of("messages", f"and {field} exclude each other; give one of them")
        return conversation(**given)
    if given:
        raise InvalidArgumentError.of(next(iter(given)), "is about a conversation; give messages=[…] with it")
    if prompt is None:
        raise InvalidArgumentError.of(field, "is not given; give a text, token ids or messages=[…]")
    return prompt if isinstance(prompt, Conversation) else text_or_ids(prompt, field)


def text_or_ids(value: TextOrIds, field: str = "prompt") -> str | tuple[int, ...]:
    """A text as it is, ids as a tuple. Raises InvalidArgumentError."""
    if isinstance(value, str):
        return value
    ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else None
    if ids is None or any(isinstance(each, str) for each in ids):
        raise InvalidArgumentError.of(
            field, f"{value!r} is neither a text nor token ids; give one text or a list of ids"
        )
    return ids


def _message(value: MessageLike, field: str) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise InvalidArgumentError.of(field, f"{value!r} is no message; write {{'role': 'user', 'content': …}}")
    fields = dict(value)
    role = fields.pop("role", None)
    if not isinstance(role, str):
        raise InvalidArgumentError.of(f"{field}.role", f"{role!r} is no text; give 'user', 'assistant' or the like")
    return Message(role, _content(fields.pop("content", None), f"{field}.content"), fields)


def _content(value: object, field: str) -> str | None:
    """A text, or the texts of a list, one behind the other."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise InvalidArgumentError.of(field, f"{value!r} is neither a text nor a list of them")
    return "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(value))


def _part(value: object, field: str) -> str:
    text = value.get("text") if isinstance(value, Mapping) and value.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise InvalidArgumentError.of(field, "is no text; only {'type': 'text', 'text': …} can be part of a content")
    return text
