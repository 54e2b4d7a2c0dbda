"""The model's own predictions at the explained rows: the target, the contrast and the most probable tokens."""

from __future__ import annotations

from neuron_attribution.results import TokenPrediction
from torch import Tensor

from neuron_attribution_server.model.attribution.unembedding import Unembedding, normalised
from neuron_attribution_server.model.engine.explanation.projector import Projector

ALTERNATIVES = 10


def own_log_probabilities(unembedding: Unembedding, finals: Tensor, scale: Tensor | None = None) -> Tensor:
    """The model's next-token log probabilities [E, V] at final residuals [E, d], every bias included.

    With a `scale` [E] of the final norm they are read over that, not over their own.
    """
    return normalised(unembedding.own_logits(finals, scale))


def predictions(projector: Projector, log_probabilities: Tensor, tokens: Tensor) -> list[list[TokenPrediction]]:
    """The predictions of tokens [E, n] from log probabilities [E, V]."""
    values = log_probabilities.gather(1, tokens)
    ranks = (log_probabilities[:, None] > values[:, :, None]).sum(-1) + 1
    rows = zip(tokens.tolist(), values.tolist(), values.exp().tolist(), ranks.tolist(), strict=True)
    return [
        [
            TokenPrediction(projector.token(token), probability, log_probability, rank)
            for token, log_probability, probability, rank in zip(*row, strict=True)
        ]
        for row in rows
    ]


def most_probable(log_probabilities: Tensor) -> Tensor:
    """The ids of the most probable tokens, [E, n]."""
    return log_probabilities.topk(min(ALTERNATIVES, log_probabilities.shape[1])).indices
