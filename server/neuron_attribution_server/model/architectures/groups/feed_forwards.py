"""Feed-forward networks that several families share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.spec import FeedForward, Layout, Rows

GATED = FeedForward(
    output="mlp.down_proj",
    up=Rows("mlp.up_proj"),
    gate=Rows("mlp.gate_proj"),
    activation="mlp.act_fn",
)

FUSED_GATED = FeedForward(
    output="mlp.down_proj",
    up=Rows("mlp.gate_up_proj", Layout.SECOND_HALF),
    gate=Rows("mlp.gate_up_proj", Layout.FIRST_HALF),
    activation="mlp.activation_fn",
)


def clamped_swiglu(network: Any, gate: Tensor, up: Tensor) -> Tensor:  # noqa: ANN401 - a family's own class
    """The coefficients of a network whose gate and up row have a limit, and whose up row has one added to it."""
    gate = gate.clamp(max=network.swiglu_limit)
    up = up.clamp(-network.swiglu_limit, network.swiglu_limit)
    return gate * torch.sigmoid(network.swiglu_alpha * gate) * (up + 1)


UNGATED = FeedForward(output="mlp.down_proj", up=Rows("mlp.up_proj"), activation="mlp.act_fn")

ON_THE_LAYER = FeedForward(output="fc2", up=Rows("fc1"), activation="activation_fn")
