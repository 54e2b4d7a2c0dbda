"""Single values as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuron_attribution.results import Coverage, ModelIdentity, ProjectedToken, Timings, Token


def visible(text: str) -> str:
    """A token's text in quotes, spaces and line ends and all; nothing in it can reach the terminal as a command."""
    return repr(text)


def token_text(token: Token) -> str:
    """A token for people."""
    return visible(token.text)


def token_list(tokens: Iterable[ProjectedToken]) -> str:
    """The tokens of a projection in a row."""
    return " ".join(token_text(item.token) for item in tokens)


def number(value: float | None) -> str:
    """A score with four decimals; one too small for that with its exponent."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or not abs(value) < 0.001 else f"{value:.1e}"


def place(position: int, tokens: Sequence[Token]) -> str:
    """A position and its token."""
    text = f" {token_text(tokens[position])}" if position < len(tokens) else ""
    return f"{position}{text}"


def model_text(model: ModelIdentity) -> str:
    """The model an answer comes from."""
    return f"{model.name} (revision {model.revision}, {model.dtype})"


def coverage_text(coverage: Coverage) -> str:
    """How a ranking was obtained."""
    exactness = "exact" if coverage.exact else "not guaranteed to be exact"
    return f"{coverage.neurons} exist, {coverage.bounded} bounded, {coverage.scored} scored, {exactness}"


def timings_text(timings: Timings) -> str:
    """Where the time went."""
    stages = ("queue", "tokenization", "forward", "scoring")
    if timings.cached:
        return f"from the server's cache; tokenization {timings.tokenization * 1000:.1f} ms"
    times = ", ".join(f"{stage} {getattr(timings, stage) * 1000:.1f} ms" for stage in stages)
    return f"{times}; batch of {timings.batch_requests} requests, {timings.batch_tokens} tokens"
