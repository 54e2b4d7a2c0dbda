"""What the modules of the first and the last layer of each kind take in and give, in one pass of a few tokens.

Attention is a stand-in where a model asks transformers' attention interface for it: causal, without soft-caps, sinks
or windows. What is read from a trace is which numbers go where, which does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.pytorch_utils import Conv1D

TRACED_LENGTH = 17
"""Tokens: a number that no model has heads of."""
CLOSE = 1e-5
"""Relative to the largest value: what differs by less is the same."""
_KEY = "neuron_attribution_traced"


class NoGuessError(Exception):
    """A model has something that no description can say; the message names it."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a module: its path below the layer (or the model), what it took in [T, n] and gave [T, m]."""

    path: str
    module: nn.Module
    read: Tensor
    gave: Tensor

    @property
    def linear(self) -> bool:
        """Whether it is a projection."""
        return isinstance(self.module, (nn.Linear, Conv1D))

    @property
    def may_be_norm(self) -> bool:
        """Whether it changes vectors in place; or could, but for what it was given here."""
        if self.linear or self.gave.shape != self.read.shape or any(True for _ in self.module.children()):
            return False
        return has_epsilon(self.module) or not same(self.read, self.gave)

    @property
    def size(self) -> int:
        """m."""
        return self.gave.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Mixing:
    """How attention mixed values.

    Through the interface, what it took in, `values` [T, K * D], and gave, `mixed` [T, H * D]; else the weights that the
    module at `path` returned, `pattern` [H, T, T].
    """

    path: str
    values: Tensor | None = None
    mixed: Tensor | None = None
    pattern: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrace:
    """One layer: its input and output [T, d], the calls in the order in which they ended, and its attention."""

    number: int
    read: Tensor
    gave: Tensor
    calls: tuple[Call, ...]
    mixing: Mixing

    def giving(self, numbers: Tensor) -> list[Call]:
        """The calls that gave these numbers, the innermost first."""
        return [call for call in self.calls if same(call.gave, numbers)]

    def taking(self, numbers: Tensor) -> list[Call]:
        """The calls that took in these numbers, the innermost first."""
        return [call for call in self.calls if same(call.read, numbers)]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The first and the last layer of each kind, the calls outside the layers, and the logits [T, V]."""

    layers: tuple[LayerTrace, ...]
    outside: tuple[Call, ...]
    last: Tensor
    """What the last layer gave, [T, d]."""
    logits: Tensor


def same(a: Tensor, b: Tensor, close: float = CLOSE) -> bool:
    """Whether two tensors are the same numbers, but for rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= close * b.abs().max())


def has_epsilon(module: nn.Module) -> bool:
    """Whether a module says what epsilon it has, as most norms do."""
    return hasattr(module, "eps") or hasattr(module, "variance_epsilon")


def uses_interface(model: PreTrainedModel) -> bool:
    """Whether a model's class asks transformers' attention interface for its attention."""
    return bool(model._can_set_attn_implementation())


def trace(model: PreTrainedModel, layers: Sequence[nn.Module], *, interface: bool) -> Trace:
    """Run a model on a few tokens. Raises NoGuessError for layers that are not as layers are."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.get_output_embeddings().weight.shape[0], (1, TRACED_LENGTH), generator=generator)
    last = {_kind(layer): number for number, layer in enumerate(layers)}
    first = {_kind(layer): number for number, layer in reversed(list(enumerate(layers)))}
    chosen = sorted({*first.values(), *last.values()})
    recorders = {number: _Recorder(layers[number]) for number in chosen}
    outside = _Recorder(model, without=layers)
    with torch.no_grad(), _attention(model, interface=interface) as mixed, _hooked((*recorders.values(), outside)):
        wanted = {} if interface else {"output_attentions": True}
        logits = model(input_ids=tokens.to(model.device), use_cache=False, **wanted).logits[0]
    traced = {number: _layer_trace(number, each, mixed) for number, each in recorders.items()}
    return Trace(
        tuple(traced.values()),
        tuple(outside.calls),
        traced[len(layers) - 1].gave,
        logits,
    )


class _Recorder:
    """Records the calls of every module in a module, and which attention weights modules return."""

    def __init__(self, root: nn.Module, without: Sequence[nn.Module] = ()) -> None:
        self.root = root
        left_out = {module for layer in without for module in layer.modules()}
        self.modules = [(path, module) for path, module in root.named_modules() if module not in left_out]
        self.calls: list[Call] = []
        self.patterns: list[tuple[str, Tensor]] = []
        self._reads: dict[nn.Module, list[Tensor | None]] = {}

    def hooks(self) -> Iterator[Any]:
        """Put the hooks on; yields their handles."""
        for path, module in self.modules:
            yield module.register_forward_pre_hook(self._before, with_kwargs=True)
            yield module.register_forward_hook(self._after(path))

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [kwargs.get("hidden_states"), *args, *kwargs.values()]
        found = next((each for each in given if isinstance(each, Tensor)), None)
        self._reads.setdefault(module, []).append(_rows(found))

    def _after(self, path: str) -> Any:  # noqa: ANN401 - a hook
        def hook(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            read, gave = self._reads[module].pop(), _rows(output)
            if read is not None and gave is not None:
                self.calls.append(Call(path, module, read, gave))
            if isinstance(output, tuple):
                self.patterns += [(path, each[0].detach().clone()) for each in output[1:2] if _is_pattern(each)]

        return hook


_MIXED: ContextVar[list[tuple[nn.Module, Tensor, Tensor]] | None] = ContextVar("mixed", default=None)


def _traced_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_args: Any,  # noqa: ANN401
    **_kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    mixed = mixed.transpose(1, 2).contiguous()
    found = _MIXED.get()
    if found is not None:
        found.append((module, value[0].transpose(0, 1).flatten(1).clone(), mixed[0].flatten(1).clone()))
    return mixed, None


@contextmanager
def _attention(model: PreTrainedModel, *, interface: bool) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """The stand-in for attention, or transformers' plain one; what the stand-in mixed."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []
    before = model.config._attn_implementation
    if not interface:
        model.config._attn_implementation = "eager"
        try:
            yield found
        finally:
            model.config._attn_implementation = before
        return
    AttentionInterface.register(_KEY, _traced_attention)
    AttentionMaskInterface.register(_KEY, eager_mask)
    token = _MIXED.set(found)
    model.set_attn_implementation(_KEY)
    try:
        yield found
    finally:
        model.set_attn_implementation(before)
        _MIXED.reset(token)


@contextmanager
def _hooked(recorders: Iterable[_Recorder]) -> Iterator[None]:
    handles = [handle for recorder in recorders for handle in recorder.hooks()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_trace(number: int, recorder: _Recorder, mixed: list[tuple[nn.Module, Tensor, Tensor]]) -> LayerTrace:
    whole = [call for call in recorder.calls if call.path == ""]
    if len(whole) != 1:
        raise NoGuessError(f"layer {number} runs {len(whole)} times in one pass")
    paths = {module: path for path, module in recorder.modules}
    found = [Mixing(paths[module], values, out) for module, values, out in mixed if module in paths]
    found += [Mixing(path, pattern=pattern) for path, pattern in recorder.patterns if path][: not found]
    if len(found) != 1:
        raise NoGuessError(f"layer {number} has {len(found) or 'no'} attention whose weights can be had")
    calls = tuple(call for call in recorder.calls if call.path)
    return LayerTrace(number, whole[0].read, whole[0].gave, calls, found[0])


def _kind(layer: nn.Module) -> tuple[tuple[str, type[nn.Module]], ...]:
    return tuple((path, type(module)) for path, module in layer.named_modules())


def _rows(value: Any) -> Tensor | None:  # noqa: ANN401 - whatever modules take in and return
    """One row a token, [T, n], of a tensor or of a tuple's first; None of what has no rows for tokens."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    while value.dim() > 2 and value.shape[0] == 1:
        value = value[0]
    if value.dim() < 2 or value.shape[0] != TRACED_LENGTH:
        return None
    rows: Tensor = value.detach().flatten(1).clone()
    return rows


def _is_pattern(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[2:] == (TRACED_LENGTH, TRACED_LENGTH)
