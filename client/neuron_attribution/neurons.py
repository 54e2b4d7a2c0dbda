"""Names of neurons and heads, and how they are written: `24.1005` (FFN), `10.3.20` (attention), `15.3` (head)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class FfnNeuron:
    """A neuron of layer `layer`'s feed-forward network, counted from zero."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.index}"


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
    """Read `LAYER.INDEX` as an FFN neuron and `LAYER.HEAD.INDEX` as an attention neuron.

    Raises ValueError for anything else.
    """
    numbers = _numbers(text)
    if len(numbers) == 2:
        return FfnNeuron(*numbers)
    if len(numbers) == 3:
        return AttentionNeuron(*numbers)
    raise ValueError(f"{text!r} is not a neuron: write LAYER.INDEX for FFN, LAYER.HEAD.INDEX for attention")


def parse_head(text: str) -> Head:
    """Read `LAYER.HEAD`. Raises ValueError for anything else."""
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise ValueError(f"{text!r} is not a head: write LAYER.HEAD")
    return Head(*numbers)


def _numbers(text: str) -> list[int]:
    parts = text.split(".")
    return [int(part) for part in parts] if all(part.isascii() and part.isdigit() for part in parts) else []
