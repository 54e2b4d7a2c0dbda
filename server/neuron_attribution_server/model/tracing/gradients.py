"""The gradient of what the model really computes, of everything that its FFNs write: one backward pass.

A neuron's gradient is that of what its output projection gives, times its row of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.capture.edits import first_input

DENSE, EXPERTS = "dense", "experts"
Written = dict[tuple[int, str], Tensor]
"""What the output projection of a layer's dense network, or its experts, gave; or gradients of it."""


@dataclass(slots=True, eq=False)
class _Pass:
    written: Written = field(default_factory=dict)
    final: Tensor | None = None
    returned: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """What layers return that return several things."""


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """How layers give back the residual stream: how many things each returns, 0 where it is alone."""

    counts: tuple[int, ...]
    carries: bool
    """Whether they hand each other more than that, so that none can be left out of a pass."""


@dataclass(frozen=True, slots=True, eq=False)
class RealGradients:
    """Gradients of what FFNs gave, [T, d], or expert after expert, [experts * T, d]."""

    written: Written
    returned: Returned


def real_gradients(
    view: ModelView, token_ids: Sequence[int], positions: Sequence[int], finals: Tensor
) -> RealGradients:
    """Of something whose gradients of final residuals at some positions are `finals` [E, d]."""
    with torch.inference_mode(False), torch.enable_grad():
        found = _Pass()
        with _kept(view, found):
            view.body(input_ids=torch.tensor([list(token_ids)], device=view.device), use_cache=False)
        final = found.final
        assert final is not None
        given = torch.zeros_like(final)
        given[0, list(positions)] = finals.clone().to(final)
        places = list(found.written)
        gradients = torch.autograd.grad(final, [found.written[place] for place in places], given, allow_unused=True)
        written = {
            place: _flat(torch.zeros_like(found.written[place]) if each is None else each).to(view.device).float()
            for place, each in zip(places, gradients, strict=True)
        }
    return RealGradients(written, _returned(found, len(view.layers)))


@contextmanager
def _kept(view: ModelView, found: _Pass) -> Iterator[None]:
    handles: list[Any] = []
    try:
        first = view.layers[0].module
        handles.append(first.register_forward_pre_hook(_followed, with_kwargs=True))
        handles.append(view.final_norm_module.register_forward_pre_hook(_final_to(found), with_kwargs=True))
        for number, layer in enumerate(view.layers):
            handles.append(layer.module.register_forward_hook(_returned_to(found, number)))
            if layer.ffn.dense is not None:
                handles.append(layer.ffn.dense.output.register_forward_hook(_written_to(found, (number, DENSE))))
            if layer.ffn.experts is not None:
                handles.append(layer.ffn.experts.module.register_forward_hook(_written_to(found, (number, EXPERTS))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _followed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Gradients are followed from the first layer's input on."""
    states = first_input(args, kwargs).detach().clone().requires_grad_()
    return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})


def _final_to(found: _Pass) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.final = first_input(args, kwargs)

    return hook


def _written_to(found: _Pass, place: tuple[int, str]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        found.written[place] = output

    return hook


def _returned_to(found: _Pass, number: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 - a tensor, or a tuple
        if not isinstance(output, Tensor):
            found.returned[number] = tuple(output)

    return hook


def _returned(found: _Pass, layers: int) -> Returned:
    """Attention weights, one for each pair of positions, are not for other layers."""
    rest = [each for output in found.returned.values() for each in output[1:] if each is not None]
    carries = any(not isinstance(each, Tensor) or each.dim() < 4 or each.shape[-1] != each.shape[-2] for each in rest)
    return Returned(tuple(len(found.returned.get(number, ())) for number in range(layers)), carries)


def _flat(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])
