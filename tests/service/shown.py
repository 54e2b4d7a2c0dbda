"""What a page of the documentation shows of a command's or a script's output."""

import re

import pytest
from checkout import ROOT

NUMBER = re.compile(r"-?\d+\.\d+(?![\d.])")


def assert_shown(lines, page):
    """The lines stand on a page of the documentation one after another, but for the last digits of numbers."""
    shown = [line.strip() for line in (ROOT / "docs" / page).read_text().splitlines()]
    first = [_words(line) for line in shown].index(_words(lines[0]))
    for line, other in zip(lines, shown[first:], strict=False):
        assert _words(line) == _words(other)
        assert [float(number) for number in NUMBER.findall(line)] == pytest.approx(
            [float(number) for number in NUMBER.findall(other)], abs=2e-3
        )


def _words(line):
    return NUMBER.sub("#", line).split()
