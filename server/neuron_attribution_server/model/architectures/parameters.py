"""Parameters of modules, wherever a model that is spread over devices keeps them.

accelerate leaves a module's parameters on the device where it runs, or, where they live in main memory or on disk,
brings them there for as long as it runs. Scoring has one device, to which whatever it reads of such a model is fetched.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

_SCORING_DEVICE: WeakKeyDictionary[nn.Module, torch.device] = WeakKeyDictionary()
"""Of every module of a spread model."""


def read_on(model: nn.Module, device: torch.device) -> None:
    """Have the parameters of a spread model read on one device."""
    for module in model.modules():
        _SCORING_DEVICE[module] = device


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """A module's own parameter, or None; that of a spread model is a copy, unless it lies on the scoring device."""
    held = getattr(module, name, None)
    device = _SCORING_DEVICE.get(module)
    if not isinstance(held, Tensor):
        return None
    if device is None:
        return held.detach()
    if not held.is_meta:
        return held.detach().to(device)
    with align_module_device(module, device):
        fetched: Tensor = getattr(module, name)
        return fetched.detach()


def required(module: nn.Module, name: str) -> Tensor:
    """A parameter that the module must have. Raises AttributeError."""
    found = parameter(module, name)
    if found is None:
        raise AttributeError(f"{type(module).__name__} has no parameter {name}")
    return found
