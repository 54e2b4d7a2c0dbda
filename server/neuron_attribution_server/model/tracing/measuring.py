"""What neurons really did: the model runs again without each of them at its position.

The reruns are an intervention's own, but that they start at the lowest layer that any of them changes, from the
residual stream as it was recorded there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from neuron_attribution.requests import Intervention, Zero
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.capture.edits import Edits, Placed, first_input
from neuron_attribution_server.model.tracing.frozen.sweeps import Place
from neuron_attribution_server.model.tracing.gradients import Returned
from neuron_attribution_server.tasks.tasks import reruns_at_once


def without_each(
    view: ModelView,
    token_ids: Sequence[int],
    inputs: Sequence[Tensor],
    places: Sequence[Place],
    positions: Sequence[int],
    returned: Returned,
) -> Iterator[tuple[list[int], Tensor]]:
    """Final residuals at some positions without each neuron at its place: which ones, and theirs, [n, E, d].

    `inputs` are those of every layer as they were recorded, [1, T, d].
    """
    order = sorted(range(len(places)), key=lambda number: -places[number].layer)
    together = reruns_at_once(len(token_ids))
    chunks = [order[start : start + together] for start in range(0, len(order), together)]
    for chunk in checked(chunks):
        mine = [places[number] for number in chunk]
        lowest = _lowest(view, returned, min(place.layer for place in mine))
        yield chunk, _finals(view, token_ids, inputs, mine, positions, (lowest, returned))


def _lowest(view: ModelView, returned: Returned, changed: int) -> int:
    """The lowest layer that has to run: later ones may mix the values that it makes, or read more of it."""
    return 0 if returned.carries else min([changed, *view.value_layers[changed:]])


def _finals(
    view: ModelView,
    token_ids: Sequence[int],
    inputs: Sequence[Tensor],
    places: Sequence[Place],
    positions: Sequence[int],
    begin: tuple[int, Returned],
) -> Tensor:
    found: list[Tensor] = []
    tokens = torch.tensor([list(token_ids)] * len(places), device=view.device)
    placed = [Placed((_without(view, place),), (place.position,)) for place in places]
    lowest, returned = begin
    with ExitStack() as stack:
        stack.enter_context(Edits(view, placed).made())
        stack.enter_context(_begun_at(view, lowest, inputs[lowest][:, : len(token_ids)], returned))
        handle = view.final_norm_module.register_forward_pre_hook(_final_to(found), with_kwargs=True)
        stack.callback(handle.remove)
        view.body(input_ids=tokens, use_cache=False)
    return found[-1][:, list(positions)].to(view.device).float()


def _without(view: ModelView, place: Place) -> Intervention:
    neuron = view.ffn_neuron(place.layer, place.unit)
    return Intervention(neurons=(neuron,), operation=Zero(), explained_position_only=True)


@contextmanager
def _begun_at(view: ModelView, lowest: int, recorded: Tensor, returned: Returned) -> Iterator[None]:
    """While the model runs from a layer on, whose input was recorded; those below pass on what they are given."""
    layer = view.layers[lowest]
    states = recorded if layer.remaining == 1 else recorded / layer.remaining
    below = [each.module for each in view.layers[:lowest]]
    own = [module.__dict__.get("forward") for module in below]
    handle = layer.module.register_forward_pre_hook(_instead(states), with_kwargs=True) if lowest else None
    try:
        for module, count in zip(below, returned.counts, strict=False):
            module.forward = _passing_on(count)
        yield
    finally:
        for module, before in zip(below, own, strict=True):
            module.__dict__.pop("forward", None)  # the class's own is seen again
            if before is not None:
                module.forward = before
        if handle is not None:
            handle.remove()


def _passing_on(count: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as a layer's own
        states = first_input(args, kwargs)
        return (states, *[None] * (count - 1)) if count else states

    return forward


def _instead(states: Tensor) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = first_input(args, kwargs)
        instead = states.to(given).repeat(len(given), 1, 1)
        return ((instead, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": instead})

    return hook


def _final_to(found: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(first_input(args, kwargs))

    return hook
