"""What a server has answered, where more is built on it: a part that was asked for is there, or the answer is wrong."""

from __future__ import annotations

from typing import TypeVar

from neuron_attribution.errors import InternalError
from neuron_attribution.results import AttributeResult, Explanation

Part = TypeVar("Part")


def given(part: Part | None, name: str) -> Part:
    """A part of an answer. Raises InternalError where the server left it out."""
    if part is None:
        raise left_out(name)
    return part


def explanation_of(answer: AttributeResult) -> Explanation:
    """The explanation of the one token that was asked about. Raises InternalError where the server left it out."""
    return given(next(iter(answer.explanations), None), "the explanation")


def left_out(name: str) -> InternalError:
    """The error for an answer without something that was asked for."""
    return InternalError(f"the server left out {name}, which was asked for", reason="INCOMPLETE_ANSWER")
