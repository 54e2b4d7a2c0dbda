"""Messages in place of a prompt: what callers write, on the command line and in files, and what is asked."""

import json
import re

import pytest
from client.strategies import conversations
from examples import examples
from hypothesis import given, settings
from neuron_attribution import Client, Conversation, InvalidArgumentError, Message, convert
from neuron_attribution.analysis.corpus import Corpus
from neuron_attribution.cli.main import main
from neuron_attribution.conversations.written import conversation
from neuron_attribution.evaluation.facts import FactsError, read_facts
from neuron_attribution.evaluation.first_tokens import FirstTokens
from neuron_attribution.requests import AttributeOptions, TokenizeRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

HI = {"role": "user", "content": "Hi"}
ASKED = Conversation((Message("user", "Hi"),))


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


@given(conversations())
@settings(max_examples=examples(100), deadline=None)
def test_a_conversation_to_tokenize_crosses_the_wire_as_it_is(talk):
    request = TokenizeRequest(text=talk)
    written = convert.tokenize_request_to_proto(request).SerializeToString()
    read = convert.tokenize_request_from_proto(messages.TokenizeRequest.FromString(written))
    assert read == request
    for sent, got in zip(talk.messages, read.text.messages, strict=True):
        assert list(sent.fields) == list(got.fields), "the order of keys, which templates write"


def test_every_call_that_takes_a_prompt_takes_messages(client, service):
    client.attribute(messages=[HI])
    client.intervene(messages=[HI], zero=["1.17"])
    client.tokenize(messages=[HI])
    client.attribute(ASKED)
    assert [
        request.text if isinstance(request, TokenizeRequest) else request.prompt for request in service.requests
    ] == [ASKED] * 4


def test_what_goes_with_messages_is_asked(client, service):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    client.attribute(
        messages=[HI, called],
        tools=[tool],
        template_arguments={"enable_thinking": False},
        chat_template="tool_use",
        add_generation_prompt=False,
    )
    (request,) = service.requests
    assert request.prompt == Conversation(
        (Message("user", "Hi"), Message("assistant", None, {"tool_calls": [{"id": "1"}]})),
        add_generation_prompt=False,
        arguments={"enable_thinking": False},
        template="tool_use",
        tools=(tool,),
    )


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"messages": "Hi"}, "messages"),
        ({"messages": [HI, "Hi"]}, "messages[1]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{**HI, "tool_calls": {1, 2}}]}, "prompt.conversation.messages[0].fields"),
        ({"prompt": "Hi", "messages": [HI]}, "messages"),
        ({"prompt": "Hi", "tools": [{}]}, "tools"),
        ({}, "prompt"),
    ],
)
def test_what_cannot_be_meant_is_named_before_it_is_sent(client, service, arguments, field):
    with pytest.raises(InvalidArgumentError) as caught:
        client.attribute(**arguments)
    assert caught.value.violations[0].field == field
    assert service.requests == []


@pytest.fixture
def run(address, capsys):
    def run(*words):
        assert main([*words, "--address", address]) == 0
        return capsys.readouterr().out

    return run


def test_the_command_line_takes_messages(run, service, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text(
        json.dumps({"model": "x", "messages": [HI, {"role": "assistant", "content": "Yes?"}], "tools": [{}]})
    )
    run("attribute", "--user", "Hi")
    run("intervene", "--system", "S", "--user", "Hi", "--zero", "1.17")
    run("tokenize", "--messages", str(file), "--user", "Bye", "--template", "t", "--no-generation-prompt")
    run("attribute", "--messages", str(file), "--template-argument", "enable_thinking=false", "name=Bo")
    run("attribute", "--messages", str(file), "--continue-final-message")
    first, second, third, fourth, fifth = service.requests
    assert first.prompt == ASKED
    assert second.prompt == Conversation((Message("system", "S"), Message("user", "Hi")))
    whole = (Message("user", "Hi"), Message("assistant", "Yes?"))
    assert third.text == Conversation(
        (*whole, Message("user", "Bye")), add_generation_prompt=False, template="t", tools=({},)
    )
    assert fourth.prompt == Conversation(whole, arguments={"enable_thinking": False, "name": "Bo"}, tools=({},))
    assert fifth.prompt == Conversation(whole, continue_final_message=True, tools=({},))


@pytest.mark.parametrize(
    "words",
    [
        ["attribute"],
        ["attribute", "Hi", "--user", "Hi"],
        ["tokenize", "--template", "t"],
        ["tokenize", "--continue-final-message"],
        ["attribute", "--user", "Hi", "--continue-final-message", "--generation-prompt"],
        ["attribute", "--messages", "/nowhere.json"],
        ["attribute", "--user", "Hi", "--template-argument", "x"],
        ["compare", "Hi", "--user", "Hi", "--other-user", "Ho"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_the_model_command_tells_of_chat_templates(run):
    assert re.search(r"chat template +none: prompts are texts or token ids", run("model"))


def test_rows_of_a_corpus_hold_messages(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"messages": [HI], "answer": " Ho"},
        {"messages": [{"content": "no role"}]},
        {"messages": [HI], "prompt": "Hi"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    right, wrong, both = Corpus(file, AttributeOptions())
    assert right.request.prompt == ASKED
    assert right.request.completion == "Ho", "an answer begins without a space"
    assert "messages[0].role" in wrong.problem
    assert "one of prompt, token_ids and messages" in both.problem


def test_facts_hold_messages(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text(
        json.dumps({"messages": [HI], "answer": "Ho"}) + "\n" + json.dumps({"prompt": "Hi", "answer": "Ho"})
    )
    chat, plain = read_facts(file)
    assert (chat.asked, plain.asked) == (ASKED, "Hi")
    assert chat.key != plain.key
    file.write_text(json.dumps({"messages": [{}], "answer": "Ho"}))
    with pytest.raises(FactsError, match=r"messages\[0\]"):
        read_facts(file)


def test_a_word_that_begins_an_answer_has_no_space(client, service):
    tokens = FirstTokens(client)
    tokens.of("Paris")
    tokens.of("Paris", begins=True)
    assert [request.text for request in service.requests[1:]] == [" Paris", "Paris"]


def test_texts_of_a_content_follow_each_other():
    parts = [{"type": "text", "text": "H"}, {"text": "i"}]
    assert conversation([{"role": "user", "content": parts}]) == ASKED
