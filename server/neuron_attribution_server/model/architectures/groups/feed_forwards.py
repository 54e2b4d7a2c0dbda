"""Feed-forward networks that several families share."""

from __future__ import annotations

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

UNGATED = FeedForward(output="mlp.down_proj", up=Rows("mlp.up_proj"), activation="mlp.act_fn")

ON_THE_LAYER = FeedForward(output="fc2", up=Rows("fc1"), activation="activation_fn")
