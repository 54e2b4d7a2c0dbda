"""A fake model with a chat template, and requests that hold conversations."""

from dataclasses import replace

from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.tasks.model_facts import ChatTemplates
from service.fakes import FakeEngine, HarmlessEngine

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message.role + ':' + message.content + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{% set x = 9 ** 9 ** 9 %}{{ x }}",
    "writes": "{{ 'a' * 1000000000 }}",
    "goes_on": "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "doubles": "{% set n = namespace(x='a') %}{% for a in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "calls_itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "imports": "{% include '/etc/passwd' %}",
    "writes_code": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "is_broken": "{% for %}",
}
TOOLS = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
ENDS = "{% for message in messages %}{{ message.content + bos_token }}{% endfor %}"
TEMPLATES = {"default": CHAT, "ends": ENDS, "tool_use": f"tools{CHAT}", "writes_tools": TOOLS, **HOSTILE}


class ChattingEngine(FakeEngine):
    """A fake model with templates, most of which are hostile."""

    @property
    def facts(self):
        return replace(super().facts, chat=ChatTemplates(TEMPLATES, {"bos_token": "<bos>"}))


class HarmlessChattingEngine(ChattingEngine, HarmlessEngine):
    """No token makes it fail."""


def make_chatting_engine():
    """An engine for a worker process."""
    return ChattingEngine()


def talk(*texts, role="u", **fields):
    """A conversation of such contents."""
    return messages.Conversation(messages=[messages.Message(role=role, content=text) for text in texts], **fields)


def chat(*texts, role="u", conversation=None, **fields):
    """A request for the attribution of a conversation."""
    prompt = messages.Prompt(conversation=talk(*texts, role=role, **(conversation or {})))
    return messages.AttributeRequest(prompt=prompt, **fields)
