"""Counts what a GPU would be asked to do: operations, and the times that the host waits for their results.

    with CountedOperations() as counted:
        engine.run(tasks)
    counted.operations, counted.waits

Needs no GPU: on a CPU the same operations are dispatched, wherever the engine does not ask for its device. One
operation is about one kernel's launch; a few (a sort, a fused attention) launch more.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "resize_"}
"""They launch nothing, like views."""
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""They wait only where a mask of booleans must be turned into numbers."""
READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
SERVER = "/neuron_attribution_server/"


class CountedOperations:
    """Counts while it is entered; `reset` begins anew.

    On a CPU a copy to the host is seen where Python asks for one: `cpu()`, `tolist()`, `numpy()`. What `cpu()` gave,
    and every view of it, is on the host and is read without another wait. `to(device)` cannot be told from an upload.
    """

    def __init__(self) -> None:
        self._entered = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.by_operation: Counter[str] = Counter()
        """How often each operation was dispatched, by its name in aten; views and allocations are none."""
        self.by_wait: Counter[str] = Counter()
        """How often the host waited, by what for and the line of the server that asked."""
        self._on_host: dict[int, Tensor] = {}

    @property
    def operations(self) -> int:
        """Operations that were dispatched."""
        return self.by_operation.total()

    @property
    def waits(self) -> int:
        """How often the host waited."""
        return self.by_wait.total()

    def __enter__(self) -> CountedOperations:
        self._entered.enter_context(_Reads(self))
        self._entered.enter_context(_Operations(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def dispatched(self, name: str, *, waits: bool) -> None:
        """Count an operation."""
        self.by_operation[name] += 1
        if waits:
            self._wait(name)

    def read(self, tensor: Tensor, name: str) -> None:
        """Count a read of a CPU's tensor, unless it was copied to the host before."""
        if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() not in self._on_host:
            self._wait(name)

    def copied(self, tensor: Tensor) -> Tensor:
        """A CPU's tensor as a copy to the host gives it: in memory of its own."""
        self.read(tensor, "cpu")
        with _disable_current_modes():
            here = tensor.clone()
        self._on_host[here.untyped_storage().data_ptr()] = here  # kept, so that nothing else comes to lie there
        return here

    def _wait(self, name: str) -> None:
        self.by_wait[f"{name} at {_place()}"] += 1


class _Operations(TorchDispatchMode):
    """Sees what is dispatched, taken apart as far as PyTorch itself does."""

    def __init__(self, counted: CountedOperations) -> None:
        super().__init__()
        self._counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode, what is composed of others arrives whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self._counted.dispatched(name, waits=_waits(func, name, args, kwargs))
        return func(*args, **kwargs)


class _Reads(TorchFunctionMode):
    """Sees what reads a tensor without an operation."""

    def __init__(self, counted: CountedOperations) -> None:
        super().__init__()
        self._counted = counted

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.cpu and args[0].device.type == "cpu":
            return self._counted.copied(args[0])
        if func in READS:
            self._counted.read(args[0], func.__name__)
        return func(*args, **kwargs or {})


def _waits(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the host must know the result, its size, or a mask's, before it can go on."""
    if name in MASKED:
        is_filled = len(args) > 2 and args[2].numel() == 1  # that needs no numbers
        return not is_filled and any(each.dtype in (torch.bool, torch.uint8) for each in _tensors(args[1]))
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("_to_copy", "copy_"):
        return _reaches_host(name, args, kwargs)
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _reaches_host(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
    return source.device.type != "cpu" and target is not None and torch.device(target).type == "cpu"


def _tensors(tree: object) -> Iterator[Tensor]:
    return (each for each in tree_leaves(tree) if isinstance(each, Tensor))


def _place() -> str:
    """The line of the server that is running."""
    frame = sys._getframe(2)
    while frame.f_back is not None and SERVER not in frame.f_code.co_filename:
        frame = frame.f_back
    name = frame.f_code.co_filename
    return f"{name.rpartition(SERVER)[2]}:{frame.f_lineno}" if SERVER in name else "elsewhere"
