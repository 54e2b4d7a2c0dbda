"""Random neurons, drawn from the sizes of a model's widest layers; what narrower layers lack is drawn again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.results import LayerParts, ModelSizes

SPARE = 4
"""Draws that may take the place of missing neurons, for each one wanted."""


class RandomNeurons:
    """Draws neurons, and learns from refusals which FFN neurons are missing.

    A refusal tells of all higher experts and indices of its layer too. Once nothing is refused any more, what was drawn
    depends on `choice` alone: it is the first draws that exist.
    """

    def __init__(self, sizes: ModelSizes, layers: Sequence[LayerParts] = ()) -> None:
        self._sizes = sizes
        self._attending = [number for number, layer in enumerate(layers) if layer.heads] or list(range(sizes.layers))
        self._missing: dict[tuple[int, bool], list[tuple[int, int]]] = {}

    def ffn(self, choice: random.Random, count: int) -> tuple[FfnNeuron, ...]:
        """Different FFN neurons, none of which is known to be missing."""
        width = self._sizes.ffn_width + self._sizes.experts * self._sizes.expert_width
        numbers = _draws(choice, self._sizes.layers * width, count)
        neurons = (self._ffn_neuron(*divmod(number, width)) for number in numbers)
        return tuple(islice((neuron for neuron in neurons if not self._lacks(neuron)), count))

    def attention(self, choice: random.Random, count: int) -> tuple[AttentionNeuron, ...]:
        """Different attention neurons, of layers that have heads."""
        sizes, layers = self._sizes, self._attending
        numbers = islice(_draws(choice, len(layers) * sizes.heads * sizes.head_size, count), count)
        places = (np.unravel_index(number, (len(layers), sizes.heads, sizes.head_size)) for number in numbers)
        return tuple(AttentionNeuron(layers[layer], int(head), int(index)) for layer, head, index in places)

    def refused(self, neuron: FfnNeuron) -> None:
        """Take in that a neuron does not exist."""
        self._missing.setdefault(_kind(neuron), []).append((neuron.expert or 0, neuron.index))

    def _lacks(self, neuron: FfnNeuron) -> bool:
        missing = self._missing.get(_kind(neuron), ())
        return any(expert <= (neuron.expert or 0) and index <= neuron.index for expert, index in missing)

    def _ffn_neuron(self, layer: int, number: int) -> FfnNeuron:
        if number < self._sizes.ffn_width:
            return FfnNeuron(layer, number)
        expert, index = divmod(number - self._sizes.ffn_width, self._sizes.expert_width)
        return FfnNeuron(layer, index, expert)


def _kind(neuron: FfnNeuron) -> tuple[int, bool]:
    return neuron.layer, neuron.expert is not None


def _draws(choice: random.Random, total: int, count: int) -> Iterator[int]:
    """Different numbers: as many as are wanted, then spare ones."""
    first = choice.sample(range(total), min(count, total))
    yield from first
    drawn = set(first)
    spare = random.Random(repr(first)).sample(range(total), min(SPARE * count, total))
    yield from (number for number in spare if number not in drawn)
