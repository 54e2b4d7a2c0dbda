"""Value scores of layers, heads and positions, and what bounds those of neurons (paper section 3.2).

Bases of one row, in this order: x_0 ... x_L (attention and both ends), then r_0 ... r_{L-1} (FFN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.bounds import Slack
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.host import Ids, columns_on_device
from neuron_attribution_server.model.attribution.objectives import Objective
from neuron_attribution_server.model.attribution.pooled import PooledIncreases
from neuron_attribution_server.model.attribution.states import RowStates, SubvalueNorms, Weights
from neuron_attribution_server.model.attribution.subvalues import Subvalues, gathered, stack_layers


@dataclass(frozen=True, slots=True, eq=False)
class LayerValues:
    """Layer scores of E rows and both ends: attention [E, L], ffn [E, L], embedding [E], final [E], remainder [E]."""

    attention: Tensor
    ffn: Tensor
    embedding: Tensor
    final: Tensor

    @property
    def remainder(self) -> Tensor:
        """What the layers leave of final minus embedding, [E]."""
        return self.final - self.embedding - self.attention.sum(-1) - self.ffn.sum(-1)


def base_states(states: RowStates) -> Tensor:
    """Every base of every row, [E, 2 L + 1, d]."""
    return torch.cat([states.inputs, states.residuals], 1)


def layer_values(objective: Objective, layers: int) -> LayerValues:
    """The log probability increase of every layer's attention and FFN."""
    inputs, residuals = objective.values[:, : layers + 1], objective.values[:, layers + 1 :]
    return LayerValues(residuals - inputs[:, :-1], inputs[:, 1:] - residuals, inputs[:, 0], inputs[:, -1])


def head_scores(pooled: PooledIncreases, weights: Weights, states: RowStates, scale: Tensor) -> Tensor:
    """The log probability increase of every head, [E, L, H]; zero in layers without heads."""
    rows, layers, heads, _ = states.head_outputs.shape
    vectors = torch.stack(
        [
            subvalues.weighted_by_heads(states.head_outputs[:, layer])
            if len(subvalues)
            else states.inputs.new_zeros(rows, heads, states.inputs.shape[-1])
            for layer, subvalues in enumerate(checked(weights.attention_subvalues))
        ],
        1,
    )
    folded = weights.unembedding.fold(vectors) / scale[:, None, None, None]
    base = torch.arange(rows, device=scale.device)[:, None] * (2 * layers + 1)
    bases = (base + torch.arange(layers, device=scale.device)).repeat_interleave(heads)
    return pooled.ask(folded.flatten(0, 2), bases)().view(rows, layers, heads)


def position_vectors(
    weights: Weights, states: RowStates, rows: Ids, layers: Ids, heads: Ids, *, mixed: bool = True
) -> Tensor:
    """What some heads of any rows add from each source position, [C, T, d]; nothing where a row does not look.

    Rows, layers and heads [C] each; the layers ascend. Without what mixes them they are alike at all rows of a sequence
    that have no gates: what is added is a multiple.
    """
    size, group = states.values.shape[-1], states.mixing.shape[2] // states.values.shape[2]
    row, layer, head = columns_on_device([rows, layers, heads], states.inputs.device)
    units = (head[:, None] * size + torch.arange(size, device=head.device)).flatten()
    output = gathered(weights.attention_subvalues, np.repeat(layers, size), units).unflatten(0, (-1, size))
    coefficients = states.values[states.sequences[row], layer, head // group].float()
    if mixed:
        coefficients = states.mixing[row, layer, head][:, :, None] * coefficients
    if states.gates is not None:
        coefficients = coefficients * states.gates[row, layer, head][:, None]
    vectors: Tensor = coefficients @ output
    return vectors


def subvalue_products(slopes: Tensor, subvalues: Sequence[Subvalues]) -> Tensor:
    """<slope, subvalue> of every neuron, [E, L, n], for slopes [E, L, d]: one matrix product per layer for all rows."""
    return stack_layers([rows.products(slopes[:, layer]) for layer, rows in enumerate(checked(subvalues))], 1)


def unit_slack(slack: Slack, norms: SubvalueNorms, bases: slice) -> Tensor:
    """The rounding slack of unit coefficients, [E, L, n], at the bases of one kind."""
    raw = slack.per_norm[:, bases, None] * norms.read
    return raw.addcmul_(slack.per_folded_norm[:, bases, None], norms.folded)
