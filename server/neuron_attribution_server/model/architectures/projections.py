"""Projection modules read as matrices, and rows of fused ones found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuron_attribution_server.model.architectures.packed.modules import PackedLinear
from neuron_attribution_server.model.architectures.parameters import parameter, required
from neuron_attribution_server.model.architectures.spec import Layout
from neuron_attribution_server.model.attribution.exact_products import products_by_pieces
from neuron_attribution_server.model.attribution.host import Ids, on_device


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """Query heads, key/value heads and dimensions of a value vector."""

    heads: int
    key_value_heads: int
    head_size: int

    @classmethod
    def common(cls, layers: Sequence[HeadSizes]) -> HeadSizes:
        """What the heads of every layer fit in: the largest, and so many that each layer's are repeated into them."""
        counts = [each.key_value_heads for each in layers]
        return cls(layers[0].heads, math.lcm(*counts), max(each.head_size for each in layers))

    def of_heads(self, states: Tensor) -> Tensor:
        """Numbers of all heads of a layer, [..., heads * its head size], with zeros behind those of smaller heads."""
        if states.shape[-1] == self.heads * self.head_size:
            return states
        return self._padded(states.unflatten(-1, (self.heads, -1))).flatten(-2)

    def of_values(self, values: Tensor) -> Tensor:
        """A layer's value vectors, [..., its key/value heads, T, its head size], as [..., K, T, D].

        More heads than K, or larger ones than D, stay as they are: the description is wrong, and invariants tell.
        """
        repeats = self.key_value_heads // values.shape[-3]
        return self._padded(values if repeats <= 1 else values.repeat_interleave(repeats, -3))

    def missing(self, head_size: int) -> Tensor | None:
        """Which places, [heads * D], heads of this size leave empty; None where they leave none."""
        if head_size == self.head_size:
            return None
        return (torch.arange(self.head_size) >= head_size).repeat(self.heads)

    def own_units(self, units: Tensor, head_size: int) -> Tensor:
        """Units counted in heads of the common size, as a layer with heads of this size counts those that it has."""
        if head_size == self.head_size:
            return units
        heads, inside = units // self.head_size, units % self.head_size
        return (heads * head_size + inside)[inside < head_size]

    def _padded(self, states: Tensor) -> Tensor:
        missing = self.head_size - states.shape[-1]
        return torch.nn.functional.pad(states, (0, missing)) if missing > 0 else states


def weight_of(module: nn.Module) -> Tensor:
    """A projection's weight as [output, input], unpacked where it is packed; Conv1D stores the transpose."""
    if isinstance(module, PackedLinear):
        return module.matrix()
    weight = required(module, "weight")
    return weight.T if isinstance(module, Conv1D) else weight


def shape_of(module: nn.Module) -> tuple[int, int]:
    """A projection's outputs and inputs."""
    if isinstance(module, PackedLinear):
        return module.form.shape
    outputs, inputs = weight_of(module).shape
    return outputs, inputs


def bias_of(module: nn.Module) -> Tensor | None:
    """A module's bias in float32, or None."""
    bias = parameter(module, "bias")
    return None if bias is None else bias.float()


def key_value_heads(rows: int, layout: Layout, heads: int, head_size: int) -> int:
    """How many key/value heads a projection with so many output rows computes the values of."""
    units = rows // head_size
    if layout is Layout.WHOLE:
        return units
    return heads if layout is Layout.LATENT else (units - heads) // 2


def holds_values(rows: int, layout: Layout, sizes: HeadSizes) -> bool:
    """Whether so many output rows, laid out so, have the values of every key/value head, and of one at least."""
    try:
        found = select(torch.arange(rows), layout, sizes)
    except RuntimeError:  # they cannot be divided so
        return False
    return 0 < len(found) == sizes.key_value_heads * sizes.head_size


def select(outputs: Tensor, layout: Layout, sizes: HeadSizes) -> Tensor:
    """The values (or one half) among a fused projection's outputs, which are the first dimension."""
    return _SELECT[layout](outputs, sizes)


def _per_head(outputs: Tensor, sizes: HeadSizes) -> Tensor:
    parts: Tensor = outputs.unflatten(0, (sizes.heads, 3, sizes.head_size))
    return parts[:, 2].flatten(0, 1)


def _per_group(outputs: Tensor, sizes: HeadSizes) -> Tensor:
    parts: Tensor = outputs.unflatten(0, (sizes.key_value_heads, -1, sizes.head_size))
    return parts[:, -1].flatten(0, 1)


def _four_blocks(outputs: Tensor, _sizes: HeadSizes) -> Tensor:
    parts: Tensor = outputs.unflatten(0, (4, 3, -1))
    return parts[:, 1].flatten(0, 1)


def _last_of_each_head(outputs: Tensor, sizes: HeadSizes) -> Tensor:
    parts: Tensor = outputs.unflatten(0, (sizes.heads, -1))
    return parts[:, -sizes.head_size :].flatten(0, 1)


_SELECT: dict[Layout, Callable[[Tensor, HeadSizes], Tensor]] = {
    Layout.WHOLE: lambda outputs, _: outputs,
    Layout.FIRST_HALF: lambda outputs, _: outputs[: len(outputs) // 2],
    Layout.SECOND_HALF: lambda outputs, _: outputs[len(outputs) // 2 :],
    Layout.QUERY_KEY_VALUE: lambda outputs, sizes: outputs[(sizes.heads + sizes.key_value_heads) * sizes.head_size :],
    Layout.PER_HEAD: _per_head,
    Layout.PER_GROUP: _per_group,
    Layout.FOUR_BLOCKS: _four_blocks,
    Layout.LATENT: _last_of_each_head,
    Layout.QUERY_GATE: _last_of_each_head,
}


class Projection:
    """Some output rows of a projection, in the model's own dtype; nothing is copied until it is read."""

    def __init__(self, module: nn.Module, layout: Layout, sizes: HeadSizes) -> None:
        self._module = module
        self._layout = layout
        self._sizes = sizes
        self._places: Ids | None = None

    @property
    def weight(self) -> Tensor:
        """Every row, [n, inputs]."""
        return select(weight_of(self._module), self._layout, self._sizes)

    def rows(self, numbers: Sequence[int] | Ids) -> Tensor:
        """Some rows in float32, [C, inputs]."""
        weight = weight_of(self._module)
        if self._places is None:
            self._places = select(torch.arange(len(weight)), self._layout, self._sizes).numpy()
        return weight[on_device(self._places[np.asarray(numbers)], weight.device)].float()

    def __call__(self, vectors: Tensor) -> Tensor:
        """What the rows compute of vectors [..., inputs], in float32, [..., n]."""
        projected = products_by_pieces(vectors, self.weight)
        bias = bias_of(self._module)
        return projected if bias is None else projected + select(bias, self._layout, self._sizes)
