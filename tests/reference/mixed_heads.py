"""What heads mix, found by what they made of it: values are the columns of some module's output, gates of another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reference.recording import CLOSE, Call, Recording, is_linear, matrix, same

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


@dataclass(frozen=True)
class Normed:
    """What a norm of the mixed heads multiplies them by."""

    module: nn.Module

    def __call__(self, recording: Recording) -> Tensor:
        """[T, H * D]"""
        return recording.of(self.module).output / recording.of(self.module).input


@dataclass(frozen=True)
class Values:
    """The value vectors: some outputs of a call's module, bounded, times a factor; and what gates what heads mix."""

    call: Call
    columns: list[int]
    clipped: Callable[[Tensor], Tensor]
    factor: float = 1.0
    gate: Gate | Normed | None = None

    def __call__(self, recording: Recording) -> Tensor:
        """[T, H * D], shared key/value heads repeated."""
        return self.factor * self.clipped(recording.of(self.call.module).output.flatten(1)[:, self.columns])

    def rows(self, scope: Sequence[Call]) -> tuple[Tensor, Tensor]:
        """The rows that give them, and what those read: of the call, or of what a norm of single vectors reads."""
        if is_linear(self.call.module):
            return self.factor * matrix(self.call.module)[self.columns], self.call.input
        for call in scope:
            if is_linear(call.module) and same(call.output, self.call.input.flatten(1)):
                return self.factor * matrix(call.module)[self.columns], call.input
        raise AssertionError("nothing gives what the values are made of")

    def gates(self, recording: Recording) -> Tensor | None:
        """[T, H * D], or None."""
        return None if self.gate is None else self.gate(recording)


def find_values(
    pattern: Tensor, mixed: Tensor, heads: int, calls: Sequence[Call], clipped: Callable[[Tensor], Tensor]
) -> Values | None:
    """What `mixed` [T, H * D], which the output projection takes in, is made of by attention weights [H, T, T].

    None where none of the calls gives it.
    """
    normed = [call for call in calls if not is_linear(call.module) and same(call.output, mixed)]
    normed = [call for call in normed if not same(call.input, mixed)]
    if normed:
        found = find_values(pattern, normed[-1].input, heads, calls, clipped)
        return found and replace(found, gate=Normed(normed[-1].module))
    wanted = mixed.unflatten(1, (heads, -1))
    linear = [call for call in calls if is_linear(call.module) and call.output.dim() == 2]
    sums = [torch.einsum("hts,sj->thj", pattern, clipped(call.output)) for call in linear]
    for call, each in zip(linear, sums, strict=True):
        factors = torch.einsum("thk,thj->hkj", wanted, each) / each.square().sum(0)[:, None]
        for factor in (torch.ones(()), factors):
            places = _nearest(wanted, factor * each[:, :, None])
            if places is None:
                continue
            found = factor if factor.dim() == 0 else factor.flatten(0, 1).gather(1, places[:, None]).median()
            return Values(call, places.tolist(), clipped, round(found.item(), 6))
    for call, each in zip(linear, sums, strict=True):
        for gate in linear:
            for function in GATES:
                gated = each[:, :, None, :, None] * function(gate.output)[:, None, None, None]
                places = _nearest(wanted, gated.flatten(3))
                if places is not None:
                    width = gate.output.shape[1]
                    opened = Gate(gate.module, (places % width).tolist(), function)
                    return Values(call, (places // width).tolist(), clipped, gate=opened)
    for call in calls:
        if not is_linear(call.module) and len(call.output) == len(mixed):
            given = torch.einsum("hts,sj->thj", pattern, clipped(call.output.flatten(1)))
            places = _nearest(wanted, given[:, :, None])
            if places is not None:
                return Values(call, places.tolist(), clipped)
    return None


def _nearest(wanted: Tensor, candidates: Tensor) -> Tensor | None:
    """Which candidate [T, H, D or 1, J] each number of `wanted` [T, H, D] is, [H * D]; None where one is none."""
    nearest = (wanted[..., None] - candidates).abs().amax(0).flatten(0, 1).min(1)
    return nearest.indices if bool((nearest.values < CLOSE * wanted.abs().max()).all()) else None
