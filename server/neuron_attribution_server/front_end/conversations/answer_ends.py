"""The token that a chat template writes behind an answer: what generates an answer stops there as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_attribution.conversations.messages import Conversation, Message
from neuron_attribution.errors import NeuronAttributionError

from neuron_attribution_server.front_end.conversations.chat import Chat
from neuron_attribution_server.front_end.conversations.origins import ASSISTANT
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer

if TYPE_CHECKING:
    from neuron_attribution_server.front_end.conversations.renderer import Render

_SAID = "Xq7vW"
"""What no template writes by itself."""
_ANSWERED = (Message("user", "Hello"), Message(ASSISTANT, _SAID))
_EXAMPLES = (_ANSWERED, (*_ANSWERED, Message("user", "Thanks")))
"""Some templates end an answer only where somebody goes on."""


class AnswerEnds:
    """What the templates of one model write behind an answer, each looked up once. Any thread may use it."""

    def __init__(self, chat: Chat, tokenizer: ExactTokenizer) -> None:
        self._chat = chat
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, template: str, render: Render) -> tuple[int, ...]:
        """The special token that this template's source puts behind what an assistant says; none where it puts none."""
        if template not in self._known:
            self._known[template] = self._found(template, render)
        return self._known[template]

    def _found(self, template: str, render: Render) -> tuple[int, ...]:
        for messages in _EXAMPLES:
            example = Conversation(messages, add_generation_prompt=False)
            try:
                text = render({**self._chat.job(example, ""), "template": template}, "").text
            except NeuronAttributionError:  # it wants other conversations
                continue
            _, said, behind = text.partition(_SAID)
            first = self._tokenizer.ids(behind.lstrip(), add_special_tokens=False)[:1]
            if said and first and self._tokenizer.is_special(first[0]):
                return first
        return ()
