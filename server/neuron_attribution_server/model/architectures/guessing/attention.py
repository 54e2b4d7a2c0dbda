"""Where values come from and what attention writes, by which numbers go where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.guessing.numbers import clip_names
from neuron_attribution_server.model.architectures.guessing.trace import Call, LayerTrace, NoGuessError, same
from neuron_attribution_server.model.architectures.projections import HeadSizes, key_value_heads, select
from neuron_attribution_server.model.architectures.spec import Layout, Rows

LAYOUTS = (
    *(Layout.WHOLE, Layout.QUERY_KEY_VALUE, Layout.PER_HEAD, Layout.PER_GROUP),
    *(Layout.FOUR_BLOCKS, Layout.LATENT, Layout.FIRST_HALF, Layout.SECOND_HALF),
)
MIXES = 1e-4


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """A description's fields about attention, but for what it writes through."""

    attention_norm: str | None
    attention_output: str
    attention_weights: str | None
    value: Rows
    value_latent: tuple[str, str] | None
    value_clip: str | None


def attention_facts(layer: LayerTrace, heads: int, config: Any) -> list[AttentionFacts]:  # noqa: ANN401
    """Every description of a layer's attention that the trace allows, most of them one. Raises NoGuessError."""
    weights = layer.mixing.path if layer.mixing.values is None else None
    found = []
    problem = "no projection of its layers takes in what attention mixes"
    for output in outputs(layer):
        problem = "no projection of its layers gives the values that attention mixes"
        for call, layout, clip in _values(layer, output, heads, config):
            problem = "something other than one norm is between the residual stream and the values"
            found += [
                AttentionFacts(norm, output.path, weights, Rows(call.path, layout), latent, clip)
                for norm, latent in _reads(layer, call)
            ]
    if not found:
        raise NoGuessError(problem)
    return found


def outputs(layer: LayerTrace) -> list[Call]:
    """The projections to the residual stream that may be attention's."""
    size, mixing = layer.read.shape[1], layer.mixing
    linear = [call for call in layer.calls if call.linear and call.size == size]
    if mixing.mixed is not None:
        return [call for call in linear if same(call.read, mixing.mixed)]
    return [call for call in linear if call.path.startswith(mixing.path + ".")]


def _values(
    layer: LayerTrace,
    output: Call,
    heads: int,
    config: Any,  # noqa: ANN401
) -> Iterator[tuple[Call, Layout, str | None]]:
    """Which rows of which projection are the values, and what bounds them."""
    head_size = output.read.shape[1] // heads
    bounds: list[str | None] = [*clip_names(config), None]
    for call in layer.calls:
        if not call.linear or call.module is output.module:
            continue
        for layout in LAYOUTS:
            values = _selected(call, layout, heads, head_size)
            if values is None:
                continue
            fitting = [bound for bound in bounds if _mixes(layer, output, _clipped(values, bound, config), heads)]
            if fitting:
                yield from ((call, layout, bound) for bound in fitting)
                break  # another layout that fits says the same of this model


def _selected(call: Call, layout: Layout, heads: int, head_size: int) -> Tensor | None:
    """The values [T, K * D] that a layout finds; None where it does not fit."""
    count = key_value_heads(call.size, layout, heads, head_size) if head_size else 0
    if count < 1 or heads % count:
        return None
    try:
        values = select(call.gave.T, layout, HeadSizes(heads, count, head_size)).T
    except RuntimeError:  # the rows do not divide so
        return None
    return values if values.shape[1] == count * head_size else None


def _clipped(values: Tensor, bound: str | None, config: Any) -> Tensor:  # noqa: ANN401
    if bound is None:
        return values
    most = float(attrgetter(bound)(config))
    return values.clamp(-most, most)


def _mixes(layer: LayerTrace, output: Call, values: Tensor, heads: int) -> bool:
    """Whether these are the values that attention mixed."""
    mixing = layer.mixing
    if mixing.pattern is None:
        assert mixing.values is not None
        return same(values, mixing.values)
    if len(mixing.pattern) != heads:
        return False
    by_head = values.unflatten(1, (-1, output.read.shape[1] // heads))
    repeated = by_head.repeat_interleave(heads // by_head.shape[1], 1)
    mixed = torch.einsum("hts,shk->thk", mixing.pattern.to(repeated.dtype), repeated)
    return same(mixed.flatten(1), output.read, MIXES)


def _reads(layer: LayerTrace, value: Call) -> Iterator[tuple[str | None, tuple[str, str] | None]]:
    """The norm between the residual stream and the values, and the projection and norm of a compressed state."""
    yield from ((norm, None) for norm in norms_between(layer, value.read, layer.read))
    for inner in layer.giving(value.read):
        if not inner.may_be_norm:
            continue
        for call in layer.calls:
            if call.linear and call.size >= inner.size and same(call.gave[:, : inner.size], inner.read):
                for norm in norms_between(layer, call.read, layer.read):
                    yield norm, (call.path, inner.path)


def norms_between(layer: LayerTrace, read: Tensor, source: Tensor) -> list[str | None]:
    """The norms through which a source may be read, None for that it is read as it is."""
    norms: list[str | None] = [call.path for call in layer.giving(read) if call.may_be_norm and same(call.read, source)]
    return [*norms, None] if same(read, source) else norms
