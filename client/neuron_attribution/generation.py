"""How tokens are generated, and how that ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Generated tokens are drawn from the model's distribution, in place of its most probable one each time.

    The same seed draws the same tokens from the same distributions, whatever else is computed beside them. What one
    call generates before and after interventions is drawn with the same luck: what differs, the interventions did.
    """

    temperature: float = 1.0
    """What logits are divided by, 0.01 to 100."""
    top_p: float = 1.0
    """Only of the most probable tokens, as few as reach this probability together; above 0, at most 1."""
    top_k: int = 0
    """Only of this many most probable tokens; 0 for all."""
    seed: int | None = None
    """0 to 2**64 - 1. None: the server draws one, and tells it."""


class FinishReason(Enum):
    """Why no more tokens were generated."""

    STOP = "stop"
    """The model ended its text."""
    LENGTH = "length"
    """There are as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a generation ended."""

    finish_reason: FinishReason
    seed: int | None = None
    """What the tokens were drawn with; None where each is the most probable one."""
