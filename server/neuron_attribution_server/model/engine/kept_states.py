"""States that modules keep by themselves from one pass to the next: what one request leaves, another must not find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuron_attribution_server.model.architectures.model_view import ModelView


@contextmanager
def states_set_aside(view: ModelView) -> Iterator[None]:
    """Meanwhile there are none of before; afterwards there are those of before, and none of meanwhile."""
    kept = [place for layer in view.layers for place in layer.kept_states]
    before = [getattr(module, name) for module, name in kept]
    for module, name in kept:
        setattr(module, name, None)
    try:
        yield
    finally:
        for (module, name), state in zip(kept, before, strict=True):
            setattr(module, name, state)
