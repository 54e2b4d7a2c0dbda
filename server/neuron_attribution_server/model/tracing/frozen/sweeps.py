"""Gradients of the frozen model, swept back layer by layer: what each source gives each target, and relevances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked, checkpoint
from neuron_attribution_server.model.tracing.frozen.ffn import FfnPart
from neuron_attribution_server.model.tracing.frozen.model import FrozenModel

NUMBERS_AT_ONCE = 1 << 22
"""What targets are given by the neurons of a layer, held at once: so many targets are swept together."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """An FFN neuron at a position: its layer, its number there, and the position."""

    layer: int
    unit: int
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class Relevances:
    """Activation times the output's gradient, of everything there is."""

    ffn: Sequence[Sequence[Tensor]]
    """Of each layer's parts, [P, n] each."""
    tokens: Tensor
    """[T]"""
    biases: Tensor
    """Of each layer, [L]."""


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """What sources give B targets with every FFN in between stopped: those that are asked for, and all together."""

    neurons: Tensor
    """Of the neurons that are asked for, [B, n]."""
    tokens: Tensor
    """[B, T]"""
    biases: Tensor
    """[B, L]"""
    sums: Tensor
    """Of all sources there are, [B]: the targets' activations."""
    magnitudes: Tensor
    """Of all sources' magnitudes, [B]."""


def relevances(frozen: FrozenModel, output: Tensor) -> Relevances:
    """Of an output with gradients [T, d] of the last residual stream."""
    swept = _Sweep(frozen, output[None].clone())
    ffn: list[list[Tensor]] = [[] for _ in frozen.layers]
    for number in checked(reversed(range(len(frozen.layers)))):
        layer = frozen.layers[number]
        read = torch.zeros_like(swept.gradients)
        for part in layer.ffn:
            gradients = part.gradients(part.at(swept.gradients))
            ffn[number].append(gradients[0] * part.activations)
            if part.constants is not None:
                swept.biases[0, number] += (gradients[0] * part.constants).sum()
            through = (gradients * part.factors) @ part.keys()
            part.add_to(read, part.read.transpose(through, part.positions))
        swept.write_constant(number, layer.ffn_constant)
        if layer.parallel:
            swept.through_attention(number)
            swept.gradients += read
        else:
            swept.gradients += read
            swept.through_attention(number)
    return Relevances(ffn, swept.tokens[0], swept.biases[0])


def edges(frozen: FrozenModel, output: Tensor, targets: Sequence[Place], sources: Sequence[Place]) -> Edges:
    """What sources give the output, of gradients [T, d], which is the first target, and FFN neurons."""
    widest = max((part.count for layer in frozen.layers for part in layer.ffn), default=1)
    step = max(1, NUMBERS_AT_ONCE // (frozen.length * max(widest, 4 * frozen.embeddings.shape[1])))
    order = [-1, *sorted(range(len(targets)), key=lambda place: -targets[place].layer)]
    found: list[Edges] = []
    for start in range(0, len(order), step):
        some = order[start : start + step]
        is_output = [place < 0 for place in some]
        mine = [targets[place] for place in some if place >= 0]
        found.append(_edges(frozen, output if any(is_output) else None, mine, sources))
    places = torch.tensor([place + 1 for place in order], device=output.device).argsort()
    return Edges(*(torch.cat([getattr(each, name) for each in found])[places] for name in Edges.__dataclass_fields__))


def _edges(frozen: FrozenModel, output: Tensor | None, targets: Sequence[Place], sources: Sequence[Place]) -> Edges:
    """Of targets of descending layers, behind the output where that is given."""
    first, length = int(output is not None), frozen.length
    count = first + len(targets)
    gradients = frozen.embeddings.new_zeros(count, length, frozen.embeddings.shape[1])
    if output is not None:
        gradients[0] = output
    swept = _Sweep(frozen, gradients)
    neurons = gradients.new_zeros(count, len(sources))
    sums, magnitudes = gradients.new_zeros(count), gradients.new_zeros(count)
    begun = first
    for number in reversed(range(len(frozen.layers))):
        checkpoint()
        layer = frozen.layers[number]
        swept.begun = begun
        if begun:
            for part in layer.ffn:
                given = part.gradients(part.at(gradients[:begun])).mul_(part.activations)
                sums[:begun] += given.sum((1, 2))
                for column, place, unit in _of(part, number, sources):
                    neurons[:begun, column] = given[:, place, unit]
                magnitudes[:begun] += given.abs_().sum((1, 2))
            swept.write_constant(number, layer.ffn_constant)
            if layer.parallel:
                swept.through_attention(number)
        mine = [target for target in targets if target.layer == number]
        swept.start(number, mine)
        begun = swept.begun
        if begun and not layer.parallel:
            swept.through_attention(number)
    sums += swept.tokens.sum(1) + swept.biases.sum(1)
    magnitudes += swept.tokens.abs().sum(1) + swept.biases.abs().sum(1)
    return Edges(neurons, swept.tokens, swept.biases, sums, magnitudes)


class _Sweep:
    """Gradients [B, T, d] of the residual stream on their way down, and what has been read of them."""

    def __init__(self, frozen: FrozenModel, gradients: Tensor) -> None:
        self._frozen = frozen
        self.gradients = gradients
        self.begun = len(gradients)
        """Targets in layers above, which come first: the others have no gradients yet."""
        self.biases = gradients.new_zeros(len(gradients), len(frozen.layers))
        self._values: dict[int, Tensor] = {}

    @property
    def tokens(self) -> Tensor:
        """What every token's embedding gives, at the end, [B, T]."""
        return (self.gradients * self._frozen.embeddings).sum(-1)

    def write_constant(self, number: int, constant: Tensor | None) -> None:
        """Count what a layer writes that depends on nothing, [d] or [T, d]."""
        if constant is not None:
            self.biases[: self.begun, number] += (self.gradients[: self.begun] * constant).sum((1, 2))

    def through_attention(self, number: int) -> None:
        """From a layer's attention on, down to its input. Values of another layer are read there."""
        attention = self._frozen.layers[number].attention
        self.write_constant(number, attention.constant)
        found = attention.value_gradients(self.gradients[: self.begun])
        values = self._frozen.values[attention.values]
        self.biases[: self.begun, attention.values] += (found * values.constants).sum((1, 2))
        before = self._values.pop(attention.values, None)
        if before is not None:
            found[: len(before)] += before
        self._values[attention.values] = found
        if number in self._values:
            own = self._values.pop(number)
            self.gradients[: len(own)] += self._frozen.values[number].transpose(own)

    def start(self, number: int, targets: Sequence[Place]) -> None:
        """Begin with what the subkeys of a layer's neurons read."""
        for part in self._frozen.layers[number].ffn:
            mine = [(row, target) for row, target in enumerate(targets, self.begun) if part.has(target.unit)]
            if not mine:
                continue
            device = self.gradients.device
            rows = torch.tensor([row for row, _ in mine], device=device)
            units = torch.tensor([target.unit - part.first for _, target in mine], device=device)
            positions = torch.tensor([target.position for _, target in mine], device=device)
            places = part.places(positions)
            keys = part.keys()[units] * part.factors[places, units, None]
            self.gradients[rows, positions] += part.read.transpose(keys, positions)
            if part.constants is not None:
                self.biases[rows, number] += part.constants[places, units]
        self.begun += len(targets)


def part_of(frozen: FrozenModel, place: Place) -> FfnPart:
    """The part of a layer that a neuron is in."""
    return next(part for part in frozen.layers[place.layer].ffn if part.has(place.unit))


def _of(part: FfnPart, layer: int, sources: Sequence[Place]) -> Iterator[tuple[int, int, int]]:
    """Which sources are in a part, as their number, the place of their position and their own."""
    for column, source in enumerate(sources):
        if source.layer == layer and part.has(source.unit):
            position = torch.tensor(source.position, device=part.activations.device)
            yield column, int(part.places(position)), source.unit - part.first
