"""The static tensors that scoring reads, from a model."""

from __future__ import annotations

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.unembedding import Unembedding

ROWS_AT_ONCE = 16_384
"""Of W_U, in float32."""


def weights_of(view: ModelView) -> Weights:
    """Read everything once; the neurons' vectors are views of the model's own weights."""
    ffn = [layer.ffn_subvalues for layer in view.layers]
    attention = [layer.attention_subvalues for layer in view.layers]
    return Weights.of(unembedding_of(view), ffn, attention)


def unembedding_of(view: ModelView) -> Unembedding:
    """The frozen-norm unembedding of a model."""
    norm = view.final_norm
    weight = view.unembedding
    assert norm.epsilon is not None
    return Unembedding(
        weight=weight,
        gamma=view.logit_multiplier * norm.weight,
        epsilon=norm.epsilon,
        centred=norm.centred,
        constant=_constant(view, weight),
        largest_norm=max(float(rows.float().norm(dim=-1).max()) for rows in weight.split(ROWS_AT_ONCE)),
        cap=view.logit_cap,
    )


def _constant(view: ModelView, weight: Tensor) -> Tensor | None:
    """W_U beta + the unembedding's bias, times the logits' multiplier, [V]."""
    terms = []
    if view.final_norm.bias is not None:
        terms.append(torch.cat([rows.float() @ view.final_norm.bias for rows in weight.split(ROWS_AT_ONCE)]))
    if view.unembedding_bias is not None:
        terms.append(view.unembedding_bias)
    return view.logit_multiplier * torch.stack(terms).sum(0) if terms else None
