"""What a model makes of conversations: which of its templates, and what that is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neuron_attribution.conversations.messages import Conversation, Message
from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError
from neuron_attribution.v1 import neuron_attribution_pb2 as proto

from neuron_attribution_server.front_end.conversations.renderer import Renderer
from neuron_attribution_server.tasks.checks import check_at_most, quotable
from neuron_attribution_server.tasks.model_facts import DEFAULT_TEMPLATE, TOOL_TEMPLATE, ChatTemplates

if TYPE_CHECKING:
    from neuron_attribution_server.front_end.conversations.rendering import Job


@dataclass(frozen=True)
class Chat:
    """A model's chat templates, and what renders them: at most so many messages to so many characters."""

    templates: ChatTemplates
    messages: int
    characters: int
    renderer: Renderer = field(default_factory=Renderer)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of its templates, where it has several."""
        return tuple(self.templates.templates) if len(self.templates.templates) > 1 else ()

    def prepare(self) -> None:
        """Have a process ready for the first conversation, where there can be one."""
        if self.templates.templates:
            self.renderer.prepare()

    def check_sizes(self, conversation: proto.Conversation, field: str) -> None:
        """Refuse what cannot be short enough before time and memory are spent on it. Raises InvalidArgumentError."""
        check_at_most(len(conversation.messages), self.messages, f"{field}.messages", "messages")
        check_at_most(len(conversation.tools), self.messages, f"{field}.tools", "tools")
        texts = sum(len(each.content) + len(each.fields) for each in conversation.messages)
        given = texts + len(conversation.arguments) + sum(map(len, conversation.tools))
        if given > self.characters:
            raise InvalidArgumentError.of(
                field, f"has {given} characters, more than the limit of {self.messages} tokens can hold"
            )

    def job(self, conversation: Conversation, field: str) -> Job:
        """What is to be rendered. Raises FailedPreconditionError and InvalidArgumentError."""
        template = self._template(conversation, field)
        goes_on = conversation.continue_final_message
        begins = conversation.add_generation_prompt
        return {
            "template": template,
            "messages": [_given(message) for message in conversation.messages],
            "tools": [dict(tool) for tool in conversation.tools] or None,
            "arguments": {**self.templates.special_tokens, **conversation.arguments},
            "add_generation_prompt": not goes_on if begins is None else begins,
            "continue_final_message": goes_on,
            "characters": self.characters,
        }

    def _template(self, conversation: Conversation, field: str) -> str:
        templates, name = self.templates.templates, conversation.template
        if not templates:
            raise FailedPreconditionError(
                "this model has no chat template, so that a conversation cannot become its text; give the prompt as "
                "text or as token ids",
                reason="NO_CHAT_TEMPLATE",
            )
        if not name:
            tool_use = conversation.tools and TOOL_TEMPLATE in templates
            name = TOOL_TEMPLATE if tool_use else DEFAULT_TEMPLATE
        if name not in templates:
            offered = ", ".join(map(quotable, templates))
            raise InvalidArgumentError.of(
                f"{field}.template", f"there is none of the name {quotable(name)!r}; this model has {offered}"
            )
        return templates[name]


def _given(message: Message) -> dict[str, object]:
    content = {} if message.content is None else {"content": message.content}
    return {"role": message.role, **content, **message.fields}
