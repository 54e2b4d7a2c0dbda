"""One float64 forward pass of a model with what every module took in and gave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

CLOSE = 1e-6


@dataclass(frozen=True, eq=False)
class Call:
    """A module's run: the tensors it took, and the first it gave, without the batch dimension."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor

    @property
    def input(self) -> Tensor:
        return self.inputs[0]


@dataclass(frozen=True)
class Recording:
    """Calls in the order in which they ended; attention weights of each layer that attends, [H, T, T]; logits [T, V].

    `attending` are the modules that returned attention weights.
    """

    calls: tuple[Call, ...]
    attentions: tuple[Tensor, ...]
    logits: Tensor
    attending: frozenset[nn.Module] = frozenset()

    def of(self, module: nn.Module) -> Call:
        """The module's last call."""
        return [call for call in self.calls if call.module is module][-1]


def record(model: PreTrainedModel, token_ids: Sequence[int]) -> Recording:
    """Run token ids by transformers' plain attention."""
    calls: list[Call] = []
    attending: list[nn.Module] = []
    handles = [module.register_forward_hook(_keep(name, calls), with_kwargs=True) for name, module in _modules(model)]
    handles += [module.register_forward_hook(_note(attending)) for module in model.modules()]
    try:
        with torch.no_grad():
            got = model(input_ids=torch.tensor([token_ids]), use_cache=False, output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    patterns = tuple(pattern[0].double() for pattern in got.attentions if pattern is not None)
    return Recording(tuple(calls), patterns, got.logits[0].double(), frozenset(attending))


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself in float64, by its plain attention and experts; XGLM's mask does not exist in float64."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"
    if any(hasattr(module, "has_gate") for module in model.modules()):
        model.set_experts_implementation("eager")
    return model if model.config.model_type == "xglm" else model.double()


def matrix(module: nn.Module) -> Tensor:
    """A projection's weight, a row for each output."""
    weight = module.weight.detach().double()
    return weight.T if isinstance(module, Conv1D) else weight


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the matrices of several experts."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, Tensor) and down.dim() == 3


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers."""
    return a.shape == b.shape and bool((a - b).abs().max() <= CLOSE * b.abs().max())


def ratio(a: Tensor, b: Tensor) -> float | None:
    """The factor that makes a of b, where one number does."""
    if a.shape != b.shape or not bool(b.abs().max() > 0):
        return None
    factor = ((a * b).sum() / b.square().sum()).item()
    return factor if same(a, factor * b) else None


def columns(wanted: Tensor, among: Tensor) -> list[int]:
    """Where each column of `wanted` [T, n] is in `among` [T, m]; empty where any is missing."""
    distance = (wanted[:, :, None] - among[:, None]).abs().amax(0)
    nearest = distance.min(1)
    return nearest.indices.tolist() if bool((nearest.values <= 1e-5 * among.abs().max()).all()) else []


def _modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Those whose output is one tensor: leaves, and experts."""
    return [(n, m) for n, m in model.named_modules() if not list(m.children()) or is_experts(m)]


def _keep(name: str, calls: list[Call]) -> object:
    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        taken = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if isinstance(output, Tensor) and taken and taken[0].dim() >= 2:
            calls.append(Call(name, module, tuple(_flat(value) for value in taken), _flat(output)))

    return hook


def _note(attending: list[nn.Module]) -> object:
    """Keep a module that returns, second, what has the shape of attention weights."""

    def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        second = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(second, Tensor) and second.dim() == 4 and second.shape[2] == second.shape[3]:
            attending.append(module)

    return hook


def _flat(value: Tensor) -> Tensor:
    """[T, ...] in float64, whether or not there is a batch dimension. Copied: some models add in place."""
    flat = value.detach()
    while flat.dim() > 2 and len(flat) == 1:
        flat = flat[0]
    return flat.double().clone() if flat.is_floating_point() else flat.clone()
