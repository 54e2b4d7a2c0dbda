"""What heads mix, found by what they made of it: values are the columns of some module's output, gates of another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reference.recording import CLOSE, Call, Recording, is_linear

GATES = torch.sigmoid, torch.nn.functional.softplus


@dataclass(frozen=True)
class Gate:
    """What multiplies the mixed heads: some outputs of a module, through a function."""

    module: nn.Module
    columns: list[int]
    function: Callable[[Tensor], Tensor]

    def __call__(self, recording: Recording) -> Tensor:
        """[T, H * D]"""
        return self.function(recording.of(self.module).output[:, self.columns])


def find_values(
    pattern: Tensor, mixed: Tensor, heads: int, calls: Sequence[Call], clipped: Callable[[Tensor], Tensor]
) -> tuple[Call, list[int], Gate | None]:
    """The call that gave the values, their columns in its output, and the gate: `mixed` [T, H * D] is made of them.

    Attention weights [H, T, T] times values, gated or not, are what the output projection takes in.
    """
    wanted = mixed.unflatten(1, (heads, -1))
    close = CLOSE * wanted.abs().max()
    linear = [call for call in calls if is_linear(call.module) and call.output.dim() == 2]
    sums = [torch.einsum("hts,sj->thj", pattern, clipped(call.output)) for call in linear]
    for call, each in zip(linear, sums, strict=True):
        nearest = (wanted[:, :, :, None] - each[:, :, None]).abs().amax(0).flatten(0, 1).min(1)
        if bool((nearest.values < close).all()):
            return call, nearest.indices.tolist(), None
    for call, each in zip(linear, sums, strict=True):
        for gate in linear:
            for function in GATES:
                gated = each[:, :, None, :, None] * function(gate.output)[:, None, None, None]
                distance = (wanted[..., None, None] - gated).abs().amax(0).flatten(0, 1)
                nearest = distance.flatten(1).min(1)
                if bool((nearest.values < close).all()):
                    places = nearest.indices // gate.output.shape[1]
                    columns = nearest.indices % gate.output.shape[1]
                    return call, places.tolist(), Gate(gate.module, columns.tolist(), function)
    raise AssertionError("no module gives the values")
