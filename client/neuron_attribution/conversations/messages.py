"""Messages in place of a prompt, as frozen dataclasses, and where tokens of theirs come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: who says what. A message that only calls tools has no content."""

    role: str
    content: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the chat template reads (tool_calls, name, reasoning_content …), as JSON has it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that the model's own chat template makes one text, with all its special tokens."""

    messages: tuple[Message, ...]
    """At least one."""
    _: KW_ONLY
    add_generation_prompt: bool | None = None
    """Whether the text ends with what begins an answer. None: yes, unless the final message is continued."""
    continue_final_message: bool = False
    """Whether the text ends amid the final message, which the model then goes on with."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those of the template (enable_thinking …), as JSON has them."""
    template: str = ""
    """One of the model's named templates; empty for its default."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Those that the model may call, as JSON has them."""


Prompt = str | tuple[int, ...] | Conversation
"""Text, token ids used exactly as given, or a conversation."""


@dataclass(frozen=True, slots=True)
class TokenOrigin:
    """Where a token of a conversation comes from: the message it belongs to, None for none, and that one's role.

    `template` is whether the chat template wrote it; otherwise a message's author did, or it is part of the answer.
    """

    message: int | None
    role: str
    template: bool
