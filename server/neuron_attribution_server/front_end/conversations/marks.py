"""Whose words a rendered conversation has: it is rendered again with marks around them, and the marks are found.

Marks are private-use characters. They stand inside a text's own spaces and around what may be a tag, so that templates
which trim, split or look for tags write the same text with them. Where a template does not, nothing is claimed.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Segment = tuple[int, int, int]
"""Where a part of the text ends, the message it belongs to or one of those below, and 1 for its author's words."""

NO_MESSAGE, ANSWER = -1, -2
"""Of text that belongs to no message, and of what begins the answer."""

_BEGIN, _END, _TURN = "\U000f0100", "\U000f0101", "\U000f0102"
_FIRST_EDGE, _LAST_EDGE = "\x1c", "\x1d"
"""Characters that are trimmed as spaces are: they tell whether the spaces at the ends of a text were kept."""
_NUMBERS = 0x100000
_MOST = 60_000
_RESERVED = re.compile("[\U000f0100-\U000f0102\U00100000-\U0010ffff\x1c\x1d]")
_MARK = re.compile(f"{_BEGIN}(..)|{_END}(..)|{_TURN}(.)|{_FIRST_EDGE}|{_LAST_EDGE}", re.DOTALL)
_TAG = re.compile(r"<[^<>\n]{1,60}>")
_TAKEN_AS_THEY_ARE = frozenset({"role", "type"})
"""What templates compare, and do not write."""


def can_mark(text: str, messages: int) -> bool:
    """Whether marks could not be taken for a part of the text."""
    return messages < _MOST and not _RESERVED.search(text)


def turn(message: int) -> str:
    """The mark that text belongs to a message, or to none, from here on."""
    return _TURN + chr(_NUMBERS + 1 + message)


@dataclass(slots=True)
class Marks:
    """Marks messages. `contents_only` leaves alone what they have beside contents; `edges` are marked or not."""

    contents_only: bool
    edges: bool
    _before: dict[str, str] = field(default_factory=dict)
    """What stands before each marked piece of a text, from the piece before on."""
    _after: dict[str, str] = field(default_factory=dict)
    """What stands behind the last one."""
    _following: set[str] = field(default_factory=set)
    """The pieces that follow another one of the same text."""

    def marked(self, messages: list[Message]) -> list[Message]:
        """The messages with their texts marked."""
        return [self._message(number, message) for number, message in enumerate(messages)]

    def segments(self, marked: str, text: str) -> list[Segment] | None:
        """The parts of a text, by the same text with marks; None where that is another one."""
        pieces = _MARK.split(marked)[:: 1 + _MARK.groups]
        if "".join(pieces) != text:
            return None
        painted = _Painted(text)
        place = 0
        opened: dict[str, int] = {}
        last: tuple[str, int] | None = None
        first_edges, last_edges = self._edges(marked)
        for piece, mark in zip(pieces, [*_MARK.finditer(marked), None], strict=True):
            place += len(piece)
            if mark is None:
                break
            begun, ended, at = mark.groups()
            if at is not None:
                painted.turns.append((place, ord(at) - _NUMBERS - 1))
            elif begun is not None:
                opened[begun] = place
                before = self._before[begun]
                start = place - len(before)
                joined = last is not None and begun in self._following and last == (_previous(begun), start)
                kept = begun not in self._following and (bool(before.strip()) or start in first_edges)
                if before and text[start:place] == before and (joined or kept):
                    painted.claim(start, place, _message(begun))
            elif ended in opened:
                painted.claim(opened.pop(ended), place, _message(ended))
                last = (ended, place)
                after = self._after.get(ended, "")
                end = place + len(after)
                if after and text[place:end] == after and (bool(after.strip()) or end in last_edges):
                    painted.claim(place, end, _message(ended))
        return painted.segments()

    def _edges(self, marked: str) -> tuple[set[int], set[int]]:
        """The places in the text without marks at which the first and the last edges of texts stand."""
        found: tuple[set[int], set[int]] = (set(), set())
        gone = 0
        for mark in _MARK.finditer(marked):
            if mark[0] in (_FIRST_EDGE, _LAST_EDGE):
                found[mark[0] == _LAST_EDGE].add(mark.start() - gone)
            gone += len(mark[0])
        return found

    def _message(self, number: int, message: Message) -> Message:
        numbers = iter(range(_MOST))
        return {
            name: self._value(value, number, numbers)
            if name not in _TAKEN_AS_THEY_ARE and (name == "content" or not self.contents_only)
            else value
            for name, value in message.items()
        }

    def _value(self, value: Any, message: int, numbers: Iterator[int]) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(value, str):
            return self._text(value, message, numbers)
        if isinstance(value, list):
            return [self._value(each, message, numbers) for each in value]
        if isinstance(value, dict):
            return {
                name: each if name in _TAKEN_AS_THEY_ARE else self._value(each, message, numbers)
                for name, each in value.items()
            }
        return value

    def _text(self, text: str, message: int, numbers: Iterator[int]) -> str:
        written: list[str] = []
        place, name = 0, ""
        for (start, end), number in zip(_pieces(text), numbers, strict=False):
            if name:
                self._following.add(_name(message, number))
            name = _name(message, number)
            self._before[name] = text[place:start]
            written += [text[place:start], _BEGIN, name, text[start:end], _END, name]
            place = end
        if not name:
            return text
        self._after[name] = after = text[place:]
        written.append(after)
        if self.edges and text[:1].isspace():
            written.insert(0, _FIRST_EDGE)
        if self.edges and text[-1:].isspace():
            written.append(_LAST_EDGE)
        return "".join(written)


def _name(message: int, number: int) -> str:
    return chr(_NUMBERS + message) + chr(_NUMBERS + number)


def _message(name: str) -> int:
    return ord(name[0]) - _NUMBERS


def _previous(name: str) -> str:
    return name[0] + chr(ord(name[1]) - 1)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where the parts of a text between its tags start and end, without the spaces around them."""
    place = 0
    for start, end in (*(tag.span() for tag in _TAG.finditer(text)), (len(text), len(text))):
        part = text[place:start]
        left = place + len(part) - len(part.lstrip())
        if part.strip():
            yield left, left + len(part.strip())
        place = end


class _Painted:
    """The characters of a text, and what is known of each."""

    def __init__(self, text: str) -> None:
        self._length = len(text)
        self._owners = array("i", [NO_MESSAGE]) * self._length
        self._authors = bytearray(self._length)
        self._claims: list[tuple[int, int, int]] = []
        self.turns: list[tuple[int, int]] = [(0, NO_MESSAGE)]
        """From where on text belongs to which message by the template's loops."""

    def claim(self, start: int, end: int, message: int) -> None:
        """These are words of that message's author."""
        self._claims.append((start, end, message))

    def segments(self) -> list[Segment]:
        """What was claimed, and around it what belongs to which message."""
        in_order = sorted(self._claims)
        for (start, message), (end, _) in zip(self.turns, [*self.turns[1:], (self._length, 0)], strict=True):
            owner = _only_message(in_order, start, end) if message == NO_MESSAGE else message
            self._owners[start:end] = array("i", [owner]) * (end - start)
        for start, end, message in self._claims:
            self._owners[start:end] = array("i", [message]) * (end - start)
            self._authors[start:end] = b"\1" * (end - start)
        return self._runs()

    def _runs(self) -> list[Segment]:
        places = {start for start, _ in self.turns} | {place for claim in self._claims for place in claim[:2]}
        ends = sorted(place for place in places | {self._length} if place > 0)
        runs: list[Segment] = []
        for end in ends:
            run = (end, self._owners[end - 1], self._authors[end - 1])
            if runs and runs[-1][1:] == run[1:]:
                runs.pop()
            runs.append(run)
        return runs


def _only_message(claims: Sequence[tuple[int, int, int]], start: int, end: int) -> int:
    """The one whose words are written there, by claims in the order of the text, if there is one."""
    found: set[int] = set()
    for place in range(bisect_left(claims, (start,)), len(claims)):
        first, last, message = claims[place]
        if first > end or len(found) > 1:
            break
        if last <= end:
            found.add(message)
    return found.pop() if len(found) == 1 else NO_MESSAGE
