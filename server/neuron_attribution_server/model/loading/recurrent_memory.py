"""What recurrent mixers take while they run, measured at load: it depends on the kernels that are installed.

Without any, transformers computes chunks of positions, whole ones even of a short sequence, and holds for each position
many times what a layer writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuron_attribution_server.model.architectures.model_view import ModelView

SHORT, LONG = 16, 512
"""Positions that are measured: of a chunk that is not full, and of several."""


@dataclass(frozen=True, slots=True)
class RecurrentBytes:
    """What mixers take: for each position, for each sequence beside them, and for each that is generated."""

    per_token: int = 0
    per_sequence: int = 0


@torch.no_grad()
def recurrent_bytes(view: ModelView) -> RecurrentBytes:
    """Measured on the first recurrent mixer, for no two run at once; states are kept of all."""
    mixer = next((layer.recurrence for layer in view.layers if layer.recurrence is not None), None)
    if mixer is None:
        return RecurrentBytes()
    most = min(LONG, view.maximum_tokens)
    short, long = (_working_bytes(view, mixer, positions) for positions in (min(SHORT, most), most))
    return RecurrentBytes(long // most, short + _state_bytes(view))


def _working_bytes(view: ModelView, mixer: nn.Module, positions: int) -> int:
    """The most that a mixer holds at once while it runs."""
    memory = _LivingTensors(view.model)
    handles = [mixer.register_forward_pre_hook(memory.begin), mixer.register_forward_hook(memory.end)]
    try:
        with memory:
            view.body(input_ids=_tokens(view, positions), use_cache=False)
    except _MeasuredError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return memory.most


def _state_bytes(view: ModelView) -> int:
    """What is kept of one sequence between the tokens that are generated: states, and hardly any keys and values."""
    output = view.body(input_ids=_tokens(view, 2), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    kept = [vars(layer) for layer in getattr(cache, "layers", ())]
    return sum(each.nbytes for each in tree_leaves(kept) if isinstance(each, Tensor))


def _tokens(view: ModelView, count: int) -> Tensor:
    return torch.zeros(1, count, dtype=torch.long, device=view.device)


class _MeasuredError(Exception):
    """Ends a pass of which the rest is not wanted."""


class _LivingTensors(TorchDispatchMode):
    """The bytes of all tensors that are made and still there, but for a model's own, while a module runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._own = {StorageWeakRef(each.untyped_storage()) for each in model.state_dict().values()}
        self._living: dict[StorageWeakRef, int] = {}
        self._before: int | None = None

    def begin(self, *_: object) -> None:
        """The module begins."""
        self._before = self._bytes()

    def end(self, *_: object) -> None:
        """The module has run. Raises _MeasuredError."""
        raise _MeasuredError

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - the signature that torch asks for
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation, and look at what it gives."""
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._living.setdefault(StorageWeakRef(storage), storage.nbytes())
        if self._before is not None:
            self.most = max(self.most, self._bytes() - self._before)
        return output

    def _bytes(self) -> int:
        self._living = {storage: size for storage, size in self._living.items() if not storage.expired()}
        return sum(size for storage, size in self._living.items() if storage not in self._own)
