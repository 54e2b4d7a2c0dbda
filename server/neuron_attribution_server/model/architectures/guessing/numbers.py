"""Numbers of a configuration, and which of them a measured factor is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from neuron_attribution_server.model.architectures.guessing.trace import NoGuessError

ONE = 1e-4
"""How far a measured factor may be from what it is."""


def residual_factor(config: Any, factor: float) -> str | None:  # noqa: ANN401 - a family's own class
    """The configuration's number that multiplies what is written; None where nothing does."""
    if abs(factor - 1) < ONE:
        return None
    names = _names(config, factor, "residual")
    if not names:
        raise NoGuessError(f"what is written is multiplied by {factor:.5g}, which is no number of its configuration")
    return names[0]


def logit_factor(config: Any, factor: float) -> tuple[str | None, str | None]:  # noqa: ANN401
    """The configuration's number that multiplies logits, or the one that divides them; neither where nothing does."""
    if abs(factor - 1) < ONE:
        return None, None
    multipliers, divisors = _names(config, factor, "logit"), _names(config, 1 / factor, "logit")
    if multipliers and ("logit" in multipliers[0] or not divisors or "logit" not in divisors[0]):
        return multipliers[0], None
    if divisors:
        return None, divisors[0]
    raise NoGuessError(f"the logits are multiplied by {factor:.5g}, which is no number of its configuration")


def _names(config: Any, factor: float, word: str) -> list[str]:  # noqa: ANN401
    """The numbers of a configuration that are a factor, those first that are called after what it multiplies."""
    names = [name for name, value in own_numbers(config) if abs(value / factor - 1) < ONE]
    return sorted(names, key=lambda name: (word not in name, name))


def own_numbers(config: Any) -> Iterator[tuple[str, float]]:  # noqa: ANN401
    """The positive numbers of a configuration itself, by name."""
    for name, value in vars(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and not name.startswith("_"):
            yield name, float(value)


def clip_names(config: Any) -> list[str]:  # noqa: ANN401
    """Numbers of a configuration and of those in it that are called a clip."""
    nested = [(f"{name}.", each) for name, each in vars(config).items() if isinstance(each, PreTrainedConfig)]
    return [
        prefix + name for prefix, each in [("", config), *nested] for name, _ in own_numbers(each) if "clip" in name
    ]
