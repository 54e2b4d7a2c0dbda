"""Conversations as prompts of every call: what they become, whose words the tokens are, what is refused and how."""

import grpc
import pytest
from neuron_attribution import AsyncClient, Client, Conversation, Message, TokenOrigin
from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution_server.front_end.service import rendering_turns
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.browsing import ask
from service.conversing import ChattingEngine, chat, talk
from service.fakes import PROMPT, TOKENIZER
from service.servers import PATIENCE, attribution, failure, running_server

SAYS = [{"role": "u", "content": "The capital of France is"}]
TEXT = "<bos>u:The capital of France is;a:"


@pytest.fixture(scope="module")
def engine():
    return ChattingEngine()


@pytest.fixture(scope="module")
def server(engine):
    with running_server(ThreadWorker(engine), web="localhost:0") as server, engine:
        assert server.loaded.wait(PATIENCE)
        yield server


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as client:
        yield client


def texts(tokens):
    return [token.text for token in tokens]


def test_a_conversation_is_the_tokens_of_its_text(client):
    ids = list(TOKENIZER.ids(TEXT, add_special_tokens=False))
    result = client.attribute(messages=SAYS)
    assert [token.id for token in result.tokens] == ids
    assert ids.count(0) == 1, "one <bos>"
    assert client.intervene(messages=SAYS, zero=["1.2"]).tokens == result.tokens
    assert client.trace(messages=SAYS).tokens == result.tokens
    shown = client.tokenize(messages=SAYS)
    assert shown.text == TEXT
    assert [item.token for item in shown.tokens] == list(result.tokens)
    assert b"".join(TEXT.encode()[item.start : item.end] for item in shown.tokens) == TEXT.encode()


def test_every_token_says_whose_it_is(client):
    result = client.attribute(messages=[*SAYS, {"role": "a", "content": " Paris"}, {"role": "u", "content": " Rome"}])
    origins = dict(zip(texts(result.tokens), result.origins, strict=True))
    assert origins["<bos>"] == TokenOrigin(None, "", template=True)
    assert origins[" capital"] == TokenOrigin(0, "u", template=False)
    assert origins[" Paris"] == TokenOrigin(1, "a", template=False)
    assert origins[" Rome"] == TokenOrigin(2, "u", template=False)
    assert result.origins[-1] == TokenOrigin(None, "assistant", template=True)
    assert client.intervene(messages=SAYS, zero=["1.2"]).origins == client.tokenize(messages=SAYS).origins
    assert client.trace(messages=SAYS).origins == client.tokenize(messages=SAYS).origins
    assert client.attribute(PROMPT).origins == ()
    assert client.tokenize(PROMPT).origins == ()


def test_what_follows_is_the_answers_or_the_message_that_goes_on(client):
    answer = client.attribute(messages=SAYS, completion=" Paris")
    assert answer.origins[-1] == TokenOrigin(None, "assistant", template=False)
    assert client.trace(messages=SAYS, completion=" Paris").origins == answer.origins
    messages = [*SAYS, {"role": "a", "content": "The capital of France is"}]
    going_on = client.attribute(messages=messages, continue_final_message=True, completion=" Paris")
    assert "".join(texts(going_on.tokens)) == "<bos>u:The capital of France is;a:The capital of France is Paris"
    assert going_on.origins[-1] == TokenOrigin(1, "a", template=False)
    assert len(going_on.origins) == len(going_on.tokens)


def test_what_is_generated_ends_where_the_template_ends_an_answer(client, engine):
    """What is generated behind a text, or a template that ends answers with no token of its own, does not."""
    asked = {"messages": SAYS, "chat_template": "ends", "generate": 2}
    client.attribute(**asked)
    client.intervene(**asked, zero=["1.2"])
    client.attribute(messages=SAYS, generate=2)
    client.attribute(PROMPT, generate=3)
    assert [task.stops for [task] in engine.batches[-4:]] == [(0,), (0,), (), ()]


def test_the_same_tokens_from_a_text_share_an_answer_and_no_origins(client):
    ids = [token.id for token in client.attribute(messages=SAYS).tokens]
    again = client.attribute(ids)
    assert again.timings.cached
    assert again.origins == ()
    asked = client.attribute(messages=SAYS)
    assert asked.timings.cached
    assert len(asked.origins) == len(asked.tokens)


def test_templates_have_names(client):
    facts = client.get_model().tokenizer
    assert facts.chat_template
    assert {"default", "tool_use"} < set(facts.chat_templates)
    assert client.tokenize(messages=SAYS, tools=[{"name": "t"}]).text == f"tools{TEXT}"
    assert client.tokenize(messages=SAYS, chat_template="tool_use").text == f"tools{TEXT}"
    assert client.tokenize(messages=SAYS, add_generation_prompt=False).text == TEXT.removesuffix("a:")


def test_the_shape_of_other_services_messages_is_taken_as_it_is(client):
    parts = [{"type": "text", "text": "The capital"}, {"type": "text", "text": " of France is"}]
    assert client.tokenize(messages=[{"role": "u", "content": parts, "refusal": None}]).text == TEXT
    asked = Conversation((Message("u", "The capital of France is"),))
    assert client.attribute(asked).tokens == client.attribute(messages=SAYS).tokens
    with pytest.raises(InvalidArgumentError, match=r"messages\[1\].content\[0\]"):
        client.tokenize(messages=[*SAYS, {"role": "u", "content": [{"type": "image_url", "image_url": "x"}]}])


def test_two_conversations_are_compared(client):
    other = [{"role": "u", "content": "The capital of Rome is"}]
    with pytest.raises(Exception, match="left out"):  # the fake model has no layers to compare
        client.compare(messages=SAYS, other_messages=other)
    with pytest.raises(InvalidArgumentError, match="nothing differs"):
        client.compare(messages=SAYS, other_messages=SAYS)


async def _asynchronous(address):
    async with AsyncClient(address) as client:
        return await client.attribute(messages=SAYS), await client.tokenize(messages=SAYS)


def test_the_asynchronous_client_asks_the_same(server, client):
    import asyncio

    attributed, tokenized = asyncio.run(_asynchronous(server.address))
    assert attributed.tokens == client.attribute(messages=SAYS).tokens
    assert tokenized.origins == attributed.origins


def test_items_of_a_stream_hold_conversations(server):
    items = [
        messages.AttributeStreamRequest(key="a", request=chat("The")),
        messages.AttributeStreamRequest(key="b", request=chat("The", conversation={"template": "is_broken"})),
        messages.AttributeStreamRequest(key="c", request=attribution()),
    ]
    answers = {each.key: each for each in server.stub.AttributeStream(iter(items), timeout=PATIENCE)}
    assert len(answers["a"].response.origins) == len(answers["a"].response.tokens) > 0
    assert answers["b"].error.reason == "CHAT_TEMPLATE_FAILED"
    assert answers["c"].response.explanations


def test_items_of_a_stream_wait_until_there_is_room_for_them(server, monkeypatch):
    monkeypatch.setattr(rendering_turns, "WAITING", 1)
    monkeypatch.setattr(rendering_turns, "_RETRY_SECONDS", 0.02)
    items = [messages.AttributeStreamRequest(key=str(each), request=chat("The")) for each in range(20)]
    answers = {each.key: each for each in server.stub.AttributeStream(iter(items), timeout=PATIENCE)}
    assert answers.keys() == {item.key for item in items}
    assert all(each.response.origins for each in answers.values())


def test_a_conversation_is_asked_over_http_too(server, client):
    asked = {"prompt": {"conversation": {"messages": [{"role": "u", "content": "The capital of France is"}]}}}
    status, _, answer = ask(server.web_address, message=asked)
    assert status == 200
    assert [token["id"] for token in answer["tokens"]] == [t.id for t in client.attribute(messages=SAYS).tokens]
    assert answer["origins"][-1] == {"role": "assistant", "template": True}


WRONG = {
    "messages": talk(),
    "messages[1].role": messages.Conversation(
        messages=[messages.Message(role=role, content="x") for role in ("u", "")]
    ),
    "messages[0].fields": messages.Conversation(messages=[messages.Message(role="u", content="x", fields="[1]")]),
    "messages[0].content": talk("", continue_final_message=True),
    "add_generation_prompt": talk("x", continue_final_message=True, add_generation_prompt=True),
    "arguments": talk("x", arguments='{"messages": []}'),
    "tools[1]": talk("x", tools=["{}", "no"]),
    "template": talk("x", template="nobody's"),
}


@pytest.mark.parametrize("field", WRONG)
def test_what_is_wrong_with_a_conversation_is_named(server, field):
    request = messages.AttributeRequest(prompt=messages.Prompt(conversation=WRONG[field]))
    error, status = failure(lambda: server.attribute(request))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations[0].field == f"prompt.conversation.{field}"
    tokenize = messages.TokenizeRequest(conversation=WRONG[field])
    error, _ = failure(lambda: server.stub.Tokenize(tokenize, timeout=PATIENCE))
    assert error.violations[0].field == f"conversation.{field}"


def test_special_tokens_are_the_templates_matter(server):
    prompt = messages.Prompt(conversation=talk("x"), add_special_tokens=True)
    error, _ = failure(lambda: server.attribute(messages.AttributeRequest(prompt=prompt)))
    assert error.violations[0].field == "prompt.add_special_tokens"
    both = messages.TokenizeRequest(conversation=talk("x"), text="y")
    error, _ = failure(lambda: server.stub.Tokenize(both, timeout=PATIENCE))
    assert error.violations[0].field == "text"


def test_a_message_without_what_the_template_reads_is_told_so(server):
    request = messages.AttributeRequest(prompt={"conversation": {"messages": [{"role": "u"}]}})
    error, status = failure(lambda: server.attribute(request))
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "content" in error.message


def test_a_model_without_a_template_says_what_to_give(shared_server):
    with Client(shared_server.address) as client:
        assert not client.get_model().tokenizer.chat_template
        with pytest.raises(FailedPreconditionError, match="as text or as token ids") as caught:
            client.attribute(messages=SAYS)
    assert caught.value.reason == "NO_CHAT_TEMPLATE"
