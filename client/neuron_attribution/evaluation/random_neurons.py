"""Random neurons, drawn from the sizes of a model's widest layers; what narrower layers lack is drawn again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Neuron
from neuron_attribution.results import LayerParts, ModelSizes

SPARE = 4
"""Draws that may take the place of missing neurons, for each one wanted."""


class RandomNeurons:
    """Draws neurons, and learns from refusals which are missing.

    A refusal tells of all higher experts and indices of its layer too, or of those indices in all of its heads. Once
    nothing is refused any more, what was drawn depends on `choice` alone: it is the first draws that exist.
    """

    def __init__(self, sizes: ModelSizes, layers: Sequence[LayerParts] = ()) -> None:
        self._sizes = sizes
        every = list(range(sizes.layers))
        self._attending = [number for number, layer in enumerate(layers) if layer.heads] or every
        self._feeding = [number for number, layer in enumerate(layers) if layer.ffn_width or layer.experts] or every
        self._missing: dict[tuple[int, str], list[tuple[int, int]]] = {}

    def ffn(self, choice: random.Random, count: int) -> tuple[FfnNeuron, ...]:
        """Different FFN neurons, none of which is known to be missing."""
        width = self._sizes.ffn_width + self._sizes.experts * self._sizes.expert_width
        numbers = _draws(choice, len(self._feeding) * width, count)
        places = (divmod(number, width) for number in numbers)
        neurons = (self._ffn_neuron(self._feeding[layer], number) for layer, number in places)
        return tuple(islice((neuron for neuron in neurons if not self._lacks(neuron)), count))

    def attention(self, choice: random.Random, count: int) -> tuple[AttentionNeuron, ...]:
        """Different attention neurons, of layers that have heads; none of them is known to be missing."""
        sizes, layers = self._sizes, self._attending
        numbers = _draws(choice, len(layers) * sizes.heads * sizes.head_size, count)
        places = (np.unravel_index(number, (len(layers), sizes.heads, sizes.head_size)) for number in numbers)
        neurons = (AttentionNeuron(layers[layer], int(head), int(index)) for layer, head, index in places)
        return tuple(islice((neuron for neuron in neurons if not self._lacks(neuron)), count))

    def refused(self, neuron: Neuron) -> None:
        """Take in that a neuron does not exist."""
        self._missing.setdefault(_kind(neuron), []).append((_expert(neuron), neuron.index))

    def _lacks(self, neuron: Neuron) -> bool:
        missing = self._missing.get(_kind(neuron), ())
        return any(expert <= _expert(neuron) and index <= neuron.index for expert, index in missing)

    def _ffn_neuron(self, layer: int, number: int) -> FfnNeuron:
        if number < self._sizes.ffn_width:
            return FfnNeuron(layer, number)
        expert, index = divmod(number - self._sizes.ffn_width, self._sizes.expert_width)
        return FfnNeuron(layer, index, expert)


def _kind(neuron: Neuron) -> tuple[int, str]:
    if isinstance(neuron, AttentionNeuron):
        return neuron.layer, "attention"
    return neuron.layer, "dense" if neuron.expert is None else "experts"


def _expert(neuron: Neuron) -> int:
    return 0 if isinstance(neuron, AttentionNeuron) else neuron.expert or 0


def _draws(choice: random.Random, total: int, count: int) -> Iterator[int]:
    """Different numbers: as many as are wanted, then spare ones."""
    first = choice.sample(range(total), min(count, total))
    yield from first
    drawn = set(first)
    spare = random.Random(repr(first)).sample(range(total), min(SPARE * count, total))
    yield from (number for number in spare if number not in drawn)
