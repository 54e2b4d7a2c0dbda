"""Norms by what they return, and rows as they read the residual stream through them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from reference.recording import Call, is_linear, matrix, ratio, same
from reference.weights import Norm


def measured_norm(module: nn.Module, size: int) -> Norm:
    """A norm's weight, bias and epsilon, from what it makes of three vectors."""
    module = copy.deepcopy(module).double()
    vector = torch.linspace(-1, 2, size, dtype=torch.float64) ** 3 + 0.1
    with torch.no_grad():
        bias = module(torch.zeros(1, size, dtype=torch.float64))[0].double()
        large, shifted = (module(x[None])[0].double() for x in (1e4 * vector, 1e4 * vector + 1e4))
        centred = same(large, shifted)
        c = vector - vector.mean() * centred
        weight = (large - bias) * c.square().mean().sqrt() / c
        tiny = 1e-3 * vector
        scales = 1e-3 * weight * c / (module(tiny[None])[0].double() - bias)
    epsilon = scales.median().item() ** 2 - 1e-6 * c.square().mean().item()
    return Norm(weight, bias, max(epsilon, 0.0), centred)


def no_norm(size: int) -> Norm:
    """What stands for a norm where there is none."""
    return Norm(torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64), None, False)


def norm_after(scope: list[Call], raw: Tensor) -> Call | None:
    """What norms what a projection gave, where something does."""
    found = [call for call in scope if not is_linear(call.module) and same(call.input, raw)]
    normed = [call for call in found if call.output.shape == raw.shape and not same(call.output, raw)]
    return normed[0] if normed else None


def traced(scope: list[Call], rows: Tensor, read: Tensor, size: int) -> tuple[Tensor, Norm]:
    """Rows as they read the norm of the residual stream, and that norm: through what lies in between, if anything."""
    norms = [call for call in scope if not is_linear(call.module) and same(call.output, read)]
    norms = [call for call in norms if not same(call.input, call.output)]
    if not norms and (multiple := _multiple_of(scope, read)):
        call, factor = multiple
        norm = measured_norm(call.module, size)
        return rows, Norm(factor * norm.weight, factor * norm.bias, norm.eps, norm.centred)
    if not norms:
        return rows, no_norm(size)
    norm = measured_norm(norms[-1].module, read.shape[-1])
    if read.shape[-1] == size:
        return rows, norm
    for call in scope:
        if is_linear(call.module) and same(call.output[:, : read.shape[-1]], norms[-1].input):
            return traced(scope, rows * norm.weight @ matrix(call.module)[: read.shape[-1]], call.input, size)
    raise AssertionError("nothing gives what the values are made from")


def _multiple_of(scope: list[Call], read: Tensor) -> tuple[Call, float] | None:
    """A norm that gives what is read but for a factor, and the factor."""
    for call in scope:
        if not is_linear(call.module) and call.input.shape == read.shape and not same(call.input, call.output):
            factor = ratio(read, call.output)
            if factor is not None:
                return call, factor
    return None
