"""Names of neurons and heads, and how they are written.

`24.1005` (FFN), `24.e7.1005` (FFN, of expert 7), `10.3.20` (attention), `15.3` (head).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering


@total_ordering
@dataclass(frozen=True, slots=True)
class FfnNeuron:
    """A neuron of layer `layer`'s feed-forward network, counted from zero.

    With an `expert` it is a neuron of that routed expert; without one, of the network that every token passes through:
    the layer's only one, or its shared expert.
    """

    layer: int
    index: int
    expert: int | None = None

    def __str__(self) -> str:
        expert = "" if self.expert is None else f"e{self.expert}."
        return f"{self.layer}.{expert}{self.index}"

    def __lt__(self, other: FfnNeuron) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int, int]:
        return self.layer, -1 if self.expert is None else self.expert, self.index


@dataclass(frozen=True, slots=True, order=True)
class AttentionNeuron:
    """Dimension `index` of the value vector of (query) head `head` in layer `layer`, counted from zero."""

    layer: int
    head: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}.{self.index}"


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """Head `head` of layer `layer`, counted from zero."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


Neuron = FfnNeuron | AttentionNeuron


def parse_neuron(text: str) -> Neuron:
    """Read `LAYER.INDEX` or `LAYER.eEXPERT.INDEX` as an FFN neuron and `LAYER.HEAD.INDEX` as an attention neuron.

    Raises ValueError for anything else.
    """
    routed = re.fullmatch(r"([0-9]+)\.e([0-9]+)\.([0-9]+)", text)
    if routed:
        layer, expert, index = map(int, routed.groups())
        return FfnNeuron(layer, index, expert)
    numbers = _numbers(text)
    if len(numbers) == 2:
        return FfnNeuron(*numbers)
    if len(numbers) == 3:
        return AttentionNeuron(*numbers)
    raise ValueError(
        f"{text!r} is not a neuron: write LAYER.INDEX for FFN, LAYER.eEXPERT.INDEX for an expert's, "
        "LAYER.HEAD.INDEX for attention"
    )


def parse_head(text: str) -> Head:
    """Read `LAYER.HEAD`. Raises ValueError for anything else."""
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise ValueError(f"{text!r} is not a head: write LAYER.HEAD")
    return Head(*numbers)


def _numbers(text: str) -> list[int]:
    parts = text.split(".")
    return [int(part) for part in parts] if all(part.isascii() and part.isdigit() for part in parts) else []
