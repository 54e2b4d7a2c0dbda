"""Which neurons are worth a rerun: those of the largest gradient of the real log odds, times their activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.feed_forward import Experts
from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.tracing.frozen.ffn import FfnPart
from neuron_attribution_server.model.tracing.frozen.model import FrozenModel
from neuron_attribution_server.model.tracing.frozen.sweeps import Place
from neuron_attribution_server.model.tracing.gradients import DENSE, EXPERTS, RealGradients


@dataclass(frozen=True, slots=True)
class Candidate:
    """A neuron at its position, its activation, and what the gradient says of it."""

    place: Place
    activation: float
    gradient: float


def candidates(
    view: ModelView, frozen: FrozenModel, gradients: RealGradients, last: int, count: int
) -> list[Candidate]:
    """The first `count` of them, at positions up to `last`, those of the largest magnitude first."""
    best: list[Candidate] = []
    for number, layer in enumerate(checked(view.layers)):
        for part in frozen.layers[number].ffn:
            best += _largest(number, part, _scores(number, layer, part, gradients, frozen.length), last, count)
        best = sorted(best, key=lambda each: -abs(each.gradient))[:count]
    return best


def _scores(number: int, layer: LayerView, part: FfnPart, gradients: RealGradients, length: int) -> Tensor:
    """Gradient times activation of a part's neurons, [P, n]."""
    experts = layer.ffn.experts
    dense_width = 0 if layer.ffn.dense is None else layer.ffn.dense.width
    if experts is None or part.first < dense_width:
        written = gradients.written[number, DENSE]
    else:
        written = _of_expert(experts, gradients.written[number, EXPERTS], (part.first - dense_width) // experts.width)
    return part.at(written[:length]) @ part.rows().T * part.activations * part.inward


def _of_expert(experts: Experts, written: Tensor, expert: int) -> Tensor:
    """The gradients of what one expert gave, [T, d]: views of all's, where they give one sum."""
    return experts.written(written, 1, expert)[0]


def _largest(number: int, part: FfnPart, scores: Tensor, last: int, count: int) -> Iterator[Candidate]:
    positions = torch.arange(len(scores), device=scores.device) if part.positions is None else part.positions
    scores = torch.where((positions <= last)[:, None], scores, 0)
    found = scores.flatten().abs().topk(min(count, scores.numel())).indices
    places, units = found // part.count, found % part.count
    columns = positions[places], units, part.activations[places, units], scores[places, units]
    for position, unit, activation, score in zip(*(column.tolist() for column in columns), strict=True):
        if score:
            yield Candidate(Place(number, part.first + unit, position), activation, score)
