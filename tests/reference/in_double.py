"""Everything in float64: what asks PyTorch for float32 inside gets float64, whoever asks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

_METHODS = {torch.Tensor.float: torch.Tensor.double}


class _InDouble(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tuple(torch.float64 if each is torch.float32 else each for each in args)
        named = {name: torch.float64 if each is torch.float32 else each for name, each in (kwargs or {}).items()}
        return _METHODS.get(func, func)(*given, **named)


@contextmanager
def in_double() -> Iterator[None]:
    """While this lasts, float32 is float64: norms and softmax that convert to float32, and the engine's own numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InDouble():
            yield
    finally:
        torch.set_default_dtype(before)


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model in float64."""
    return copy.deepcopy(model).double()
