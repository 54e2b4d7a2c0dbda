"""The keys of neurons: what their block reads of the residual stream, through the weight of the norm before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.requests import Subkey
from torch import Tensor

from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView


def ffn_keys(view: ModelView, neurons: Sequence[FfnNeuron], subkey: Subkey) -> Tensor:
    """Subkeys of FFN neurons times the FFN norm's weight, [K, d]."""
    return torch.stack([view.layers[neuron.layer].ffn_key(view.ffn_unit(neuron), subkey) for neuron in neurons])


def attention_keys(view: ModelView, neurons: Sequence[AttentionNeuron]) -> Tensor:
    """W_V rows of attention neurons, of the key/value head they share, times the attention norm's weight, [K, d]."""
    return torch.stack([_attention_key(view.layers[neuron.layer], neuron) for neuron in neurons])


def check_subkey(view: ModelView, subkey: Subkey) -> None:
    """Raise FailedPreconditionError where the model's FFN has no such key."""
    if subkey is Subkey.GATE and not view.gated:
        raise FailedPreconditionError(
            f"subkey: the FFN of {view.spec.family} models has no gate; use the up subkey", reason="NO_GATE"
        )


def _attention_key(layer: LayerView, neuron: AttentionNeuron) -> Tensor:
    return layer.value_row(neuron.head, neuron.index) * layer.attention_norm.weight
