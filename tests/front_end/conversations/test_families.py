"""Ids are transformers', to the last one: templates of many families' shapes, times conversations of every kind."""

import re

import pytest
from jinja2.exceptions import TemplateError
from neuron_attribution import convert
from neuron_attribution.requests import AttributeRequest
from neuron_attribution_server.front_end.conversations.answer_ends import AnswerEnds
from neuron_attribution_server.front_end.conversations.chat import Chat
from neuron_attribution_server.front_end.conversations.renderer import Rendered
from neuron_attribution_server.front_end.conversations.rendering import render
from neuron_attribution_server.tasks.model_facts import ChatTemplates
from service.talks import BEGIN, END, EXACT, SPECIAL_TOKENS, TALKS, TEMPLATES, TOKENIZERS, asked, job, rendered
from transformers import PreTrainedTokenizerFast

BEGINNING = {"llama2", "llama3", "mistral", "mistral_system", "gemma", "deepseek", "command_r", "olmo"}


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def tokenizers(request):
    ours = EXACT[request.param]
    theirs = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[request.param], bos_token=BEGIN, eos_token=END)
    return ours, theirs


def theirs(tokenizer, family, talk):
    return tokenizer.apply_chat_template(
        talk.messages,
        tools=talk.tools,
        chat_template=TEMPLATES[family],
        add_generation_prompt=talk.begin_answer and not talk.go_on,
        continue_final_message=talk.go_on,
        return_dict=False,
        **talk.arguments,
    )


def test_there_are_enough_of_both():
    assert len(TEMPLATES) >= 12
    assert len(TALKS) >= 15


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_ids_are_those_of_transformers(tokenizers, family, name):
    ours, reference = tokenizers
    talk = TALKS[name]
    try:
        expected = theirs(reference, family, talk)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        with pytest.raises(Exception, match=re.escape(str(error)[:40]) if isinstance(error, TemplateError) else ""):
            rendered(family, talk)
        return
    text = rendered(family, talk)["text"]
    assert list(ours.ids(text, add_special_tokens=False)) == expected
    first = ours.ids(BEGIN, add_special_tokens=False)[-1]
    if family in BEGINNING - {"llama2"} and BEGIN not in str(talk.messages):
        assert expected.count(first) == 1
        assert expected[0] == first


ENDS = {
    "chatml": "<|im_end|>",
    "command_r": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<|end▁of▁sentence|>",
    "gemma": "<end_of_turn>",
    "gpt_oss": "<|return|>",
    "granite": "<|end_of_text|>",
    "llama2": END,
    "llama3": "<|eot_id|>",
    "mistral": END,
    "mistral_system": END,
    "olmo": END,
    "phi3": "<|end|>",
    "qwen3": "<|im_end|>",
    "zephyr": END,
}
"""What each family writes behind an answer, by its documentation."""


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_what_ends_an_answer_is_found(tokenizers, family):
    tokenizer, _ = tokenizers
    chat = Chat(ChatTemplates({"default": TEMPLATES[family]}, SPECIAL_TOKENS), messages=8, characters=4096)
    asked = []

    def write(job, _):
        asked.append(job)
        return Rendered(**render(job))

    ends = AnswerEnds(chat, tokenizer)
    [found] = ends.of(TEMPLATES[family], write)
    assert tokenizer.text(found) == ENDS[family]
    times = len(asked)
    assert ends.of(TEMPLATES[family], write) == (found,)
    assert len(asked) == times
    assert ends.of("{{ messages[0].content }}", write) == ends.of("{{ messages[1].content }}.", write) == ()


def test_most_families_take_most_conversations():
    """So that the comparison above is one of ids, and not of refusals."""
    taken = 0
    for family in TEMPLATES:
        for talk in TALKS.values():
            try:
                rendered(family, talk)
            except Exception:
                continue
            taken += 1
    assert taken > 0.75 * len(TEMPLATES) * len(TALKS)


@pytest.mark.parametrize("name", TALKS)
def test_a_conversation_crosses_the_wire_as_it_is(name):
    """The order of a tool's keys, too: templates write it."""
    request = AttributeRequest(asked(TALKS[name]))
    read = convert.attribute_request_from_proto(convert.attribute_request_to_proto(request))
    assert read == request
    assert str(job("", read.prompt)) == str(job("", request.prompt))


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_nothing_in_a_message_is_evaluated(family):
    text = rendered(family, TALKS["template syntax"])["text"]
    assert TALKS["template syntax"].messages[0]["content"] in text
    assert "49" not in text
