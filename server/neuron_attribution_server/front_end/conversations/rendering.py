"""One conversation becomes text, exactly as transformers' `apply_chat_template` renders it. Nothing bounds it here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, TypedDict

from neuron_attribution_server.front_end.conversations import marks, templates
from neuron_attribution_server.front_end.conversations.marks import ANSWER, NO_MESSAGE, Marks, Message, Segment

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names of what a model thought; templates read the first, or the second."""
_MARKING_SECONDS = 0.4
"""After so long, no more marks are tried: the text matters more than whose it is."""
_MARKED_TIMES = 8
"""So many times as long a text may get by its marks, and they are a few more characters."""


class Job(TypedDict):
    """What is to be rendered: a template's text, and what it is given. Text of more `characters` is refused."""

    template: str
    messages: list[Message]
    tools: list[Any] | None
    arguments: dict[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool
    characters: int


class Rendered(TypedDict):
    """The text, and whose words its parts are."""

    text: str
    segments: list[Segment]


class TooManyCharactersError(Exception):
    """The text is longer than allowed."""


class CannotContinueError(Exception):
    """The final message is not in the text as it is."""


def render(job: Job) -> Rendered:
    """Render a conversation. Raises jinja2's TemplateError and whatever else templates raise."""
    started = time.monotonic()
    write = templates.plain(job["template"])
    text = _cut(_written(write, job, job["messages"]), job, check=True)
    segments = _segments(job, text, started)
    answer = _answer(write, job, text) if job["add_generation_prompt"] else len(text)
    return {"text": text, "segments": _with_answer(segments, answer, len(text))}


def _segments(job: Job, text: str, started: float) -> list[Segment]:
    """By the first marks that change nothing."""
    nobody: list[Segment] = [(len(text), NO_MESSAGE, 0)]
    if not marks.can_mark(text, len(job["messages"])):
        return nobody
    write = templates.with_turns(job["template"])
    for contents_only, edges in product((False, True), (True, False)):
        if time.monotonic() - started > _MARKING_SECONDS:
            break
        marking = Marks(contents_only, edges)
        try:
            marked = _cut(_written(write, job, marking.marked(job["messages"]), times=_MARKED_TIMES), job)
        except Exception:  # a template that looks closely at its texts may refuse marked ones
            continue
        found = marking.segments(marked, text)
        if found is not None:
            return found
    return nobody


def _answer(write: Callable[[dict[str, Any]], Iterable[str]], job: Job, text: str) -> int:
    """Where what begins the answer starts: behind what is the same without it."""
    try:
        without = _written(write, {**job, "add_generation_prompt": False}, job["messages"])
    except Exception:
        return len(text)
    same = zip(text, without, strict=False)
    return next((place for place, (one, other) in enumerate(same) if one != other), min(len(text), len(without)))


def _with_answer(segments: list[Segment], answer: int, length: int) -> list[Segment]:
    """The segments with what begins the answer as one, unless somebody's words come behind its start."""
    starts = [0, *(end for end, _, _ in segments)]
    written = any(author and end > answer for end, _, author in segments)
    if answer == length or written:
        return segments
    kept = [(min(end, answer), *rest) for start, (end, *rest) in zip(starts, segments, strict=False) if start < answer]
    return [*((end, message, author) for end, message, author in kept), (length, ANSWER, 0)]


def _written(
    write: Callable[[dict[str, Any]], Iterable[str]], job: Job, messages: list[Message], times: int = 1
) -> str:
    """The text that a template writes, with the turns of its loops where it tells them."""
    given = [_reasoning_named(message) for message in map(_without_nothing, messages)]
    if job["continue_final_message"]:
        given[-1]["content"] = _with_tag(given[-1], job["template"])
    turns = _Turns(given)
    variables: dict[str, Any] = {
        "documents": None,
        **job["arguments"],
        "messages": given,
        "tools": job["tools"],
        "add_generation_prompt": job["add_generation_prompt"],
        templates.TURN_BEGINS: turns.begin,
        templates.TURN_ENDS: turns.end,
    }
    return "".join(_bounded(write(variables), times * (job["characters"] + len(_TAG) + 64)))


def _bounded(pieces: Iterable[str], most: int) -> Iterator[str]:
    """The pieces, until they are too many characters. Raises TooManyCharactersError."""
    written = 0
    for piece in pieces:
        written += len(piece)
        if written > most:
            raise TooManyCharactersError
        yield piece


def _cut(text: str, job: Job, *, check: bool = False) -> str:
    """The text up to where the model goes on with the final message. Raises CannotContinueError."""
    if job["continue_final_message"]:
        place = text.rfind(_TAG.strip())
        if place < 0 or (check and _final_text(job).strip() not in text):
            raise CannotContinueError
        kept = text[place : place + len(_TAG)] == _TAG
        text = text[:place] if kept else text[:place].rstrip()
    if check and len(text) > job["characters"]:
        raise TooManyCharactersError
    return text


def _final_text(job: Job) -> str:
    content = job["messages"][-1].get("content")
    return content if isinstance(content, str) else ""


def _with_tag(message: Message, template: str) -> str:
    content = message.get("content")
    if not isinstance(content, str) or "content" not in template:
        raise CannotContinueError
    return content + _TAG


def _without_nothing(message: Message) -> Message:
    return {name: value for name, value in message.items() if value is not None}


def _reasoning_named(message: Message) -> Message:
    """A message whose reasoning has the names that templates read."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _Turns:
    """The turns of loops that a template is in: text belongs to the message that the innermost such loop is at."""

    def __init__(self, messages: list[Message]) -> None:
        self._numbers = {id(message): number for number, message in enumerate(messages)}
        self._stack = [NO_MESSAGE]

    def begin(self, at: object) -> str:
        self._stack.append(self._numbers.get(id(at), self._stack[-1]))
        return marks.turn(self._stack[-1])

    def end(self) -> str:
        self._stack.pop()
        return marks.turn(self._stack[-1])
