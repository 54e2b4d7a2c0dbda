"""The processes that render: one is there before the first conversation, another when that one has something to do."""

import psutil
import pytest
from neuron_attribution.conversations.messages import Conversation, Message
from neuron_attribution_server.front_end.conversations.chat import Chat
from neuron_attribution_server.front_end.conversations.renderer import PROCESSES
from neuron_attribution_server.tasks.model_facts import ChatTemplates
from service.servers import eventually

pytestmark = pytest.mark.process

TEMPLATES = ChatTemplates({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"})


def rendering():
    """The processes of this one that render."""
    return [child for child in psutil.Process().children() if "conversations.child" in " ".join(child.cmdline())]


@pytest.fixture
def chat():
    chat = Chat(TEMPLATES, messages=10, characters=100)
    before = len(rendering())
    yield chat
    chat.renderer.close()
    assert eventually(lambda: len(rendering()) == before)


def test_one_waits_for_the_first_conversation_and_another_is_started_when_it_comes(chat):
    before = len(rendering())
    chat.prepare()
    chat.prepare()
    assert eventually(lambda: len(rendering()) == before + 1)
    job = chat.job(Conversation((Message("user", "Hi"),), add_generation_prompt=False), "prompt")
    with chat.renderer.turn() as render:
        assert render(job, "prompt").text == "Hi"
        assert eventually(lambda: len(rendering()) == before + 2)
        with chat.renderer.turn() as other:
            assert other(job, "prompt").text == "Hi"
    with chat.renderer.turn():
        assert len(rendering()) == before + 2 <= before + PROCESSES


def test_none_is_started_for_a_model_without_a_template():
    before = len(rendering())
    Chat(ChatTemplates(), messages=10, characters=100).prepare()
    assert len(rendering()) == before
