"""Memory that ran out, recognized without importing PyTorch, and given back before the next attempt."""

from __future__ import annotations

import gc
import sys
from typing import Any

from neuron_attribution.errors import ResourceExhaustedError

_CLASSES = {"OutOfMemoryError", "MemoryError"}
_PHRASES = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch, its CPU or GPU allocator, a matrix library or Python itself found no memory."""
    if _CLASSES & {kind.__name__ for kind in type(error).__mro__}:
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)


def free_caches() -> None:
    """Give back what a failed batch left: tensors that only cycles hold, and what PyTorch keeps for later."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def does_not_fit() -> ResourceExhaustedError:
    """The error of a request for which there is no memory even if it runs alone."""
    return ResourceExhaustedError(
        "the request does not fit in the device's memory, even alone; "
        "send fewer tokens, or ask for fewer parts or explained tokens",
        reason="OUT_OF_MEMORY",
    )
