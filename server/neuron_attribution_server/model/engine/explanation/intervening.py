"""What interventions did to a prediction: before and after each set, with the distance between the two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from neuron_attribution.results import InterventionResult, PredictionState
from torch import Tensor

from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.engine.explanation.predictions import (
    most_probable,
    own_log_probabilities,
    predictions,
)
from neuron_attribution_server.model.engine.explanation.projector import Projector
from neuron_attribution_server.model.engine.generation import Continuation


def before_and_after(
    projector: Projector,
    unembedding: Unembedding,
    finals: Tensor,
    target: int | None,
    continuations: Sequence[Continuation],
    *,
    freeze_scale: bool = False,
) -> tuple[PredictionState, tuple[InterventionResult, ...]]:
    """The prediction at the final residuals [1 + sets, d], the first of which is that of the plain sequence.

    With `freeze_scale` every set's is read with the final norm's scale of the plain sequence.

    One row after another: products of several rows round otherwise, and no set's answer depends on how many there are.
    """
    plain = own_log_probabilities(unembedding, finals[:1])
    watched = int(plain.argmax()) if target is None else target
    before = _state(projector, plain, watched, continuations[0])
    scale = unembedding.scale(finals[:1]) if freeze_scale else None
    results = []
    for number, continuation in enumerate(continuations[1:], 1):
        final = finals[number : number + 1]
        changed = own_log_probabilities(unembedding, final, scale)
        after = _state(projector, changed, watched, continuation)
        results.append(InterventionResult(after, _divergence(plain, changed)))
    return before, tuple(results)


def _state(projector: Projector, log_probabilities: Tensor, target: int, continuation: Continuation) -> PredictionState:
    asked = torch.tensor([[target]], device=log_probabilities.device)
    tokens = torch.cat([asked, most_probable(log_probabilities)], 1)
    [[watched, *alternatives]] = predictions(projector, log_probabilities, tokens)
    text = tuple(map(projector.token, continuation.tokens))
    return PredictionState(watched, tuple(alternatives), text, continuation.generation)


def _divergence(before: Tensor, after: Tensor) -> float:
    """KL(before || after) in nats; rounding never makes it negative."""
    before, after = before.double(), after.double()
    return max(0.0, float((before.exp() * (before - after)).sum()))
