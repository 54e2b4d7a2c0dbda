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
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "resize_"}
"""They launch nothing, like views."""
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""They wait only where a mask of booleans must be turned into numbers."""
FACTORIES = {torch.arange, torch.as_tensor, torch.empty, torch.full, torch.ones, torch.tensor, torch.zeros}
READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
SERVER = "/neuron_attribution_server/"


class CountedOperations:
    """Counts while it is entered; `reset` begins anew.

    On a CPU everything counts as a GPU's but for what would be the host's own: what a factory makes without being told
    a device, what `cpu()` gives, and what is computed of these alone. `to` with a device makes it the GPU's again.
    An engine keeps some of that: build it, and run it once, within.
    """

    def __init__(self) -> None:
        self._entered = ExitStack()
        self._hosted = _Hosted()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.by_operation: Counter[str] = Counter()
        """How often each operation was dispatched, by its name in aten; views and allocations are none."""
        self.by_wait: Counter[str] = Counter()
        """How often the host waited, by what for and the line of the server that asked."""

    @property
    def operations(self) -> int:
        """Operations that were dispatched."""
        return self.by_operation.total()

    @property
    def waits(self) -> int:
        """How often the host waited."""
        return self.by_wait.total()

    def __enter__(self) -> CountedOperations:
        self._entered.enter_context(_Calls(self, self._hosted))
        self._entered.enter_context(_Operations(self, self._hosted))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def wait(self, name: str) -> None:
        """Count a wait."""
        self.by_wait[f"{name} at {_place()}"] += 1


class _Hosted:
    """The tensors of a CPU that would be on the host if the engine's were on a GPU."""

    def __init__(self) -> None:
        self._storages: set[StorageWeakRef] = set()

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and StorageWeakRef(tensor.untyped_storage()) in self._storages

    def add(self, result: Any) -> Any:
        """What an operation gave, which is on the host."""
        self._storages |= {StorageWeakRef(each.untyped_storage()) for each in _tensors(result)}
        return result


class _Operations(TorchDispatchMode):
    """Sees what is dispatched, taken apart as far as PyTorch itself does."""

    def __init__(self, counted: CountedOperations, hosted: _Hosted) -> None:
        super().__init__()
        self._counted = counted
        self._hosted = hosted

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode, what is composed of others arrives whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        read = list(_tensors((args, kwargs)))
        if read and all(each in self._hosted for each in read):
            return self._hosted.add(result)
        if not func.is_view and name not in ALLOCATIONS:
            self._counted.by_operation[name] += 1
            if _waits(func, name, args, kwargs):
                self._counted.wait(name)
        return result


class _Calls(TorchFunctionMode):
    """Sees which calls make tensors of the host, and which read others."""

    def __init__(self, counted: CountedOperations, hosted: _Hosted) -> None:
        super().__init__()
        self._counted = counted
        self._hosted = hosted

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func in FACTORIES and not isinstance(first, Tensor) and kwargs.get("device") is None:
            with _disable_current_modes():
                return self._hosted.add(func(*args, **kwargs))
        if isinstance(first, Tensor) and first.device.type == "cpu":
            here = first in self._hosted
            if not here and func in READS:
                self._counted.wait(func.__name__)
            if not here and func is Tensor.cpu:
                self._counted.wait("cpu")
                return self._hosted.add(_copy(first))
            if here and func is Tensor.to and _names_device(args, kwargs):
                return _copy(func(*args, **kwargs))
        return func(*args, **kwargs)


def _copy(tensor: Tensor) -> Tensor:
    """In memory of its own, as on another device."""
    with _disable_current_modes():
        return tensor.clone()


def _names_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return "device" in kwargs or any(isinstance(each, torch.device | str | Tensor) for each in args[1:])


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
