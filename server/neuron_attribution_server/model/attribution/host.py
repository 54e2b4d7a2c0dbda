"""What goes between the host and the device of the tensors. Each copy back is a wait: what can goes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Ids = NDArray[np.int64]


HOST = "cpu"
"""The type of device whose tensors the host has at hand."""


def is_host(device: torch.device) -> bool:
    """Whether nothing waits there, and what stays in a processor's cache is faster."""
    return device.type == HOST


def numbers_at_once(device: torch.device) -> int:
    """Numbers that one step of long work computes between two checkpoints."""
    return 1 << 22 if is_host(device) else 1 << 26


def to_host(tensors: Sequence[Tensor]) -> list[Array]:
    """Tensors of any types and shapes as arrays, fetched in one copy. Those of a CPU share their memory."""
    if all(is_host(tensor.device) for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    by_size = sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())  # each is aligned then
    pieces = [tensors[place].contiguous().flatten().view(torch.uint8) for place in by_size]
    packed = torch.cat(pieces).cpu().numpy()
    found: dict[int, Array] = {}
    start = 0
    for place, piece in zip(by_size, pieces, strict=True):
        end = start + len(piece)
        dtype = torch.empty(0, dtype=tensors[place].dtype).numpy().dtype
        found[place] = packed[start:end].view(dtype).reshape(tensors[place].shape)
        start = end
    return [found[place] for place in range(len(tensors))]


def on_device(array: Array, device: torch.device) -> Tensor:
    """An array as a tensor. From pinned memory a GPU fetches it by itself, while the next kernels are launched."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def columns_on_device(columns: Sequence[Ids], device: torch.device) -> tuple[Tensor, ...]:
    """Columns of ids, [C] each, sent together."""
    return on_device(np.stack(columns), device).unbind(0)
