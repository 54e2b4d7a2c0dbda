"""Names of neurons and heads, and how they are written.

`24.1005` (FFN), `24.e7.1005` (FFN, of expert 7), `10.3.20` (attention), `15.h3` (head). What the published notebooks
write, `24_1005` and `10_3_20_4` (layer, head, index, source position), is read too.
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
        return f"{self.layer}.h{self.head}"


Neuron = FfnNeuron | AttentionNeuron


@dataclass(frozen=True, slots=True)
class QuerySource:
    """A value neuron that query parts start from.

    `position` is the source position at which an attention neuron reads; None means each position by itself. FFN
    neurons have none: they read at the explained position.
    """

    neuron: Neuron
    position: int | None = None

    def __str__(self) -> str:
        return str(self.neuron) if self.position is None else f"{self.neuron}@{self.position}"


_HEAD = r"([0-9]+)\.h([0-9]+)"


def parse_neuron(text: str) -> Neuron:
    """Read `LAYER.INDEX` or `LAYER.eEXPERT.INDEX` as an FFN neuron and `LAYER.HEAD.INDEX` as an attention neuron.

    Underscores do as well, and a source position after an attention neuron is left out: the published notebooks write
    `LAYER_INDEX` and `LAYER_HEAD_INDEX_POSITION`. Raises ValueError for anything else.
    """
    if match := re.fullmatch(r"([0-9]+)\.e([0-9]+)\.([0-9]+)", text):
        layer, expert, index = map(int, match.groups())
        return FfnNeuron(layer, index, expert)
    if match := re.fullmatch(r"([0-9]+)[._]([0-9]+)", text):
        return FfnNeuron(*map(int, match.groups()))
    if match := re.fullmatch(r"([0-9]+)\.([0-9]+)\.([0-9]+)|([0-9]+)_([0-9]+)_([0-9]+)(?:_[0-9]+)?", text):
        return AttentionNeuron(*(int(number) for number in match.groups() if number is not None))
    what = "a whole head, not a neuron" if re.fullmatch(_HEAD, text) else "not a neuron"
    raise ValueError(
        f"{text!r} is {what}: write LAYER.INDEX for FFN, LAYER.eEXPERT.INDEX for an expert's, "
        "LAYER.HEAD.INDEX for attention"
    )


def parse_query_source(text: str) -> QuerySource:
    """Read a neuron, an attention neuron also as `LAYER.HEAD.INDEX@POSITION` or as the published notebooks write it.

    Raises ValueError for anything else.
    """
    placed = re.fullmatch(r"(.*)@([0-9]+)|([0-9]+_[0-9]+_[0-9]+)_([0-9]+)", text)
    if placed is None:
        return QuerySource(parse_neuron(text))
    neuron, position = (number for number in placed.groups() if number is not None)
    return QuerySource(parse_neuron(neuron), int(position))


def parse_head(text: str) -> Head:
    """Read `LAYER.hHEAD`, or `LAYER.HEAD` where nothing but a head can stand. Raises ValueError for anything else."""
    match = re.fullmatch(_HEAD, text) or re.fullmatch(r"([0-9]+)\.([0-9]+)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a head: write LAYER.hHEAD")
    return Head(*map(int, match.groups()))
