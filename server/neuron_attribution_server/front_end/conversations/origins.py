"""Whose words the tokens of a conversation are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_attribution.conversations.messages import Conversation, TokenOrigin

from neuron_attribution_server.front_end.conversations.renderer import Rendered

_ANSWER = -2
ASSISTANT = "assistant"
_ORIGIN_BYTES = 12
"""A message's number, a mark, and what protobuf puts around them and a role."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Where each token of a prompt comes from, and where those come from that follow it."""

    prompt: tuple[TokenOrigin, ...]
    answer: TokenOrigin

    def bytes(self, count: int) -> int:
        """About how many bytes those of so many tokens take in an answer, from above."""
        longest = max((len(each.role.encode()) for each in (self.answer, *self.prompt)), default=0)
        return (_ORIGIN_BYTES + longest) * count

    def of(self, count: int) -> tuple[TokenOrigin, ...]:
        """Those of so many tokens: the prompt's, and the answer's behind them."""
        return self.prompt + (self.answer,) * (count - len(self.prompt))


def token_origins(
    rendered: Rendered, offsets: Sequence[tuple[int, int]], roles: Sequence[str]
) -> tuple[TokenOrigin, ...]:
    """The origin of each token by the characters of the text that it covers.

    The spaces at a token's ends do not count where it has others: they are often the template's.
    """
    ends = [end for end, _, _ in rendered.segments]

    def origin(start: int, end: int) -> TokenOrigin:
        part = rendered.text[start:end]
        if part.strip():
            start, end = start + len(part) - len(part.lstrip()), start + len(part.rstrip())
        first = min(bisect_right(ends, start), len(ends) - 1)
        last, message, author = rendered.segments[first]
        behind = min(bisect_right(ends, max(start, end - 1)), len(ends) - 1)
        if rendered.segments[behind][1] == _ANSWER and not author:
            return TokenOrigin(None, ASSISTANT, template=True)
        template = not (author and start < end <= last)
        return TokenOrigin(message, roles[message], template) if message >= 0 else TokenOrigin(None, "", template=True)

    return tuple(origin(start, end) for start, end in offsets)


def answer_origin(conversation: Conversation) -> TokenOrigin:
    """Where tokens come from that follow a conversation: the message that they go on with, or an answer."""
    if conversation.continue_final_message:
        return TokenOrigin(len(conversation.messages) - 1, conversation.messages[-1].role, template=False)
    return TokenOrigin(None, ASSISTANT, template=False)
