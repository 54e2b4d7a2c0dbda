"""Whose words a conversation's tokens are: those of the author of each message, and the template's around them."""

import json
import time

import pytest
from examples import few
from jinja2.exceptions import TemplateError
from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution_server.front_end.conversations import rendering
from neuron_attribution_server.front_end.conversations.origins import token_origins
from neuron_attribution_server.front_end.conversations.renderer import Rendered
from neuron_attribution_server.front_end.conversations.rendering import CannotContinueError, render
from service.talks import EXACT, TALKS, TEMPLATES, Talk, asked, assistant, job, rendered, system, user


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Marks are tried for as long as it takes: a machine that does more beside loses none."""
    monkeypatch.setattr(rendering, "_MARKING_SECONDS", 60.0)


def parts(family, talk):
    """The text in parts: the message each belongs to, and whether its author wrote it."""
    found = rendered(family, talk)
    start = 0
    for end, message, author in found["segments"]:
        yield found["text"][start:end], message, bool(author)
        start = end
    assert start == len(found["text"])


TALK = Talk([system("Be brief."), user("One <b>two</b>?"), assistant("Yes."), user("user")])
PLAIN = set(TEMPLATES) - {"mistral", "gpt_oss", "llama2", "gemma", "mistral_system"}
"""The templates that write every message for itself; others put one into another."""


@pytest.mark.parametrize("family", sorted(set(TEMPLATES) - {"mistral"}))
def test_exactly_what_authors_wrote_is_theirs(family):
    mine = {}
    for text, message, author in parts(family, TALK):
        if author:
            mine[message] = mine.get(message, "") + text
    assert mine == {number: message["content"] for number, message in enumerate(TALK.messages)}


@pytest.mark.parametrize("family", sorted(PLAIN))
def test_what_stands_around_a_message_belongs_to_it(family):
    found = list(parts(family, TALK))
    for number, message in enumerate(TALK.messages):
        whole = "".join(text for text, owner, _ in found if owner == number)
        assert message["content"] in whole
    if family not in ("command_r", "llama3", "deepseek"):
        assert "user" in "".join(text for text, owner, author in found if owner == 1 and not author).lower()


def test_a_prompt_in_the_chat_markup_language():
    assert list(parts("chatml", TALK)) == [
        ("<|im_start|>system\n", 0, False),
        ("Be brief.", 0, True),
        ("<|im_end|>\n", 0, False),
        ("<|im_start|>user\n", 1, False),
        ("One <b>two</b>?", 1, True),
        ("<|im_end|>\n", 1, False),
        ("<|im_start|>assistant\n", 2, False),
        ("Yes.", 2, True),
        ("<|im_end|>\n", 2, False),
        ("<|im_start|>user\n", 3, False),
        ("user", 3, True),
        ("<|im_end|>\n", 3, False),
        ("<|im_start|>assistant\n", -2, False),
    ]


@pytest.mark.parametrize(
    ("family", "written"),
    [("chatml", "  \n\nhi \t\n "), ("llama3", "hi"), ("qwen3", "  \n\nhi \t\n "), ("gemma", "hi")],
)
def test_spaces_that_a_template_keeps_are_the_authors(family, written):
    talk = Talk([user("  \n\nhi \t\n "), assistant("ok"), user("?")])
    assert next(text for text, message, author in parts(family, talk) if author) == written


@pytest.mark.parametrize(("family", "written"), [("chatml", "\n\nhi\n"), ("llama3", "hi")])
def test_a_template_that_writes_the_same_spaces_writes_its_own(family, written):
    found = parts(family, Talk([user("\n\nhi\n"), assistant("ok"), user("?")]))
    assert next(text for text, message, author in found if author) == written


def test_what_is_written_before_the_loop_belongs_to_the_message_that_is_written_there():
    assert next(parts("qwen3", TALK)) == ("<|im_start|>system\n", 0, False)


@pytest.mark.parametrize("leaving", ["break", "continue"])
def test_what_follows_a_loop_that_was_left_is_nobodys(leaving):
    template = f"{{% for m in messages %}}{{% if m.role == 'user' %}}{{% {leaving} %}}{{% endif %}}{{% endfor %}}End"
    assert render(job(template, asked(Talk([user("a"), user("b")], begin_answer=False))))["segments"] == [(3, -1, 0)]


def test_reasoning_that_a_template_takes_out_of_a_content_stays_its_authors():
    talk = Talk([user("2?"), assistant("<think>\nTwo.\n</think>\n\n4")], begin_answer=False)
    mine = "".join(text for text, message, author in parts("qwen3", talk) if message == 1 and author)
    assert mine == "<think>\nTwo.\n</think>\n\n4"
    dropped = Talk([*talk.messages, user("Sure?")])
    assert [text for text, message, author in parts("qwen3", dropped) if message == 1 and author] == ["4"]


def test_what_is_called_is_the_authors_too():
    mine = [text for text, message, author in parts("qwen3", TALKS["a tool called"]) if message == 1 and author]
    assert mine[0] == "weather"
    assert "Zürich" in mine


@pytest.mark.parametrize("family", few(sorted(TEMPLATES), 3))
@pytest.mark.parametrize("name", TALKS)
def test_nobody_is_said_to_have_written_what_he_has_not(family, name):
    """Whatever a template does with the messages: an author's part is a part of what the message has."""
    talk = TALKS[name]
    try:
        found = list(parts(family, talk))
    except (TemplateError, TypeError, CannotContinueError):
        return
    for text, message, author in found:
        assert -2 <= message < len(talk.messages)
        if author:
            mine = [str(value) for value in _texts(talk.messages[message])]
            assert any(text in value or text in json.dumps(value, ensure_ascii=False) for value in mine)


def _texts(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value]


def test_a_template_that_looks_at_lengths_claims_nothing():
    template = "{% for m in messages %}{{ m.content | length }}:{{ m.content }};{% endfor %}"
    found = render(job(template, asked(TALK)))
    assert found["text"] == "9:Be brief.;15:One <b>two</b>?;4:Yes.;4:user;"
    assert {(message, author) for _, message, author in found["segments"]} == {(-1, 0)}


def test_text_with_the_marks_characters_is_nobodys():
    talk = Talk([user("\U000f0100 a \x1c b")])
    assert {(message, author) for _, message, author in parts("chatml", talk)} == {(-1, False), (-2, False)}


def test_many_messages_take_a_time_that_grows_as_they_do():
    """Ten times as many take about ten times as long; where each looks at all others, it is a hundred times."""

    def seconds(count):
        talk = Talk([user("one"), assistant("two")] * (count // 2))
        given = {**job(TEMPLATES["chatml"], asked(talk)), "characters": 100 * count}
        begun = time.process_time()
        found = render(given)
        taken = time.process_time() - begun
        assert sum(author for *_, author in found["segments"]) == count
        return taken

    few = min(seconds(2000) for _ in range(3))
    assert seconds(20_000) < 40 * few


def test_tokens_are_whose_the_text_is_that_they_cover():
    """The space before a first word is the template's, and the token that has both is the author's."""
    exact = EXACT["sentence pieces"]
    found = rendered("mistral", Talk([user("capital of France"), assistant("The"), user("is")]))
    text = Rendered(found["text"], [tuple(segment) for segment in found["segments"]])
    tokens, offsets = exact.encoded(text.text, add_special_tokens=False)
    origins = token_origins(text, offsets, ["user", "assistant", "user"])
    named = [(item.token.text, origin) for item, origin in zip(tokens, origins, strict=True)]
    mine = TokenOrigin(0, "user", template=False)
    assert (" capital", mine) in named
    assert (" France", mine) in named
    assert ("The", TokenOrigin(1, "assistant", template=False)) in named
    assert named[0] == ("<s>", TokenOrigin(None, "", template=True))
    assert ("[INST]", TokenOrigin(2, "user", template=True)) in named
