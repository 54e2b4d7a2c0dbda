"""The keys of neurons: what their block reads of the residual stream, through the weight of the norm before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import Subkey
from torch import Tensor

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.host import Ids
from neuron_attribution_server.model.attribution.subvalues import join


def ffn_keys(view: ModelView, layers: Ids, units: Ids, subkey: Subkey) -> Tensor:
    """Subkeys of FFN neurons of ascending layers, times the FFN norm's weight, [K, d]."""
    return _keys(view, layers, units, lambda layer, mine: layer.ffn_keys(mine, subkey))


def attention_keys(view: ModelView, layers: Ids, units: Ids) -> Tensor:
    """W_V rows of attention neurons of ascending layers, times the attention norm's weight, [K, d].

    Those of the key/value head that their head shares.
    """
    return _keys(view, layers, units, LayerView.attention_keys)


def layer_spans(layers: Ids) -> Iterator[tuple[int, slice]]:
    """Each of ascending layers, and where it is."""
    numbers, starts = np.unique(layers, return_index=True)
    yield from zip(numbers.tolist(), map(slice, starts, [*starts[1:], len(layers)]), strict=True)


def check_subkey(view: ModelView, subkey: Subkey) -> None:
    """Raise FailedPreconditionError where the model's FFN has no such key."""
    if subkey is Subkey.GATE and not view.gated:
        raise FailedPreconditionError(
            f"subkey: the FFN of {view.spec.family} models has no gate; use the up subkey", reason="NO_GATE"
        )


def _keys(view: ModelView, layers: Ids, units: Ids, keys: Callable[[LayerView, Ids], Tensor]) -> Tensor:
    return join([keys(view.layers[layer], units[span]) for layer, span in layer_spans(layers)], 0)
