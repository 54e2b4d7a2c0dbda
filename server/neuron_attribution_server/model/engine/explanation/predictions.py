"""The model's own predictions at the explained rows: the target, the contrast and the most probable tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from neuron_attribution.results import TokenPrediction
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, to_host
from neuron_attribution_server.model.attribution.projection import count_above
from neuron_attribution_server.model.attribution.unembedding import Unembedding, normalised
from neuron_attribution_server.model.engine.explanation.projector import Projector

ALTERNATIVES = 10


def own_log_probabilities(unembedding: Unembedding, finals: Tensor, scale: Tensor | None = None) -> Tensor:
    """The model's next-token log probabilities [E, V] at final residuals [E, d], every bias included.

    With a `scale` [E] of the final norm they are read over that, not over their own.
    """
    return normalised(unembedding.own_logits(finals, scale))


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """What E rows predict of n tokens each, [E, n]: the tokens, their log probabilities, and their ranks from 1."""

    tokens: Tensor
    log_probabilities: Tensor
    ranks: Tensor


def predicted(log_probabilities: Tensor, tokens: Tensor) -> Predicted:
    """What log probabilities [E, V] say of tokens [E, n]."""
    values = log_probabilities.gather(1, tokens)
    ranks = torch.stack([count_above(log_probabilities, value) for value in values.unbind(1)], 1) + 1
    return Predicted(tokens, values, ranks)


def named_predictions(
    projector: Projector, tokens: Array, log_probabilities: Array, ranks: Array
) -> list[list[TokenPrediction]]:
    """The predictions [E, n] with their tokens named."""
    rows = zip(
        *(column.tolist() for column in (tokens, log_probabilities, np.exp(log_probabilities), ranks)), strict=True
    )
    return [
        [
            TokenPrediction(projector.token(token), probability, log_probability, rank)
            for token, log_probability, probability, rank in zip(*row, strict=True)
        ]
        for row in rows
    ]


def predictions(projector: Projector, log_probabilities: Tensor, tokens: Tensor) -> list[list[TokenPrediction]]:
    """The predictions of tokens [E, n] from log probabilities [E, V]."""
    found = predicted(log_probabilities, tokens)
    return named_predictions(projector, *to_host([found.tokens, found.log_probabilities, found.ranks]))


def most_probable(log_probabilities: Tensor) -> Tensor:
    """The ids of the most probable tokens, [E, n]."""
    return log_probabilities.topk(min(ALTERNATIVES, log_probabilities.shape[1])).indices
