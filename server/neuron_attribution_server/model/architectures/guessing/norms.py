"""Which formula a norm module follows, by what it makes of a few vectors."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.guessing.trace import has_epsilon
from neuron_attribution_server.model.architectures.norms import NormView, norm_view
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, NormKind

NormFacts = tuple[NormKind, float, float | None]
"""The kind, the offset of weights, and the epsilon where modules do not say it."""
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
FITS = 1e-4


def norm_facts(module: nn.Module, size: int, template: ArchitectureSpec) -> list[NormFacts]:
    """Every description that a norm module of vectors [size] follows: several where it has no weight."""
    named = has_epsilon(module)
    choices: list[NormFacts] = [
        (kind, offset, epsilon)
        for kind in (NormKind.RMS, NormKind.LAYER)
        for offset in (0.0, 1.0)
        for epsilon in ((None,) if named else EPSILONS)
    ]
    return [facts for facts in choices if formula_error(module, _view(module, template, facts), size) < FITS]


def formula_error(module: nn.Module, view: NormView, size: int) -> float:
    """How far a norm module is from its formula: the largest difference for a vector relative to its largest value.

    The vectors are large and small, so that an epsilon shows, and with and without a mean.
    """
    generator = torch.Generator().manual_seed(2)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(view.weight.device)
    vectors = torch.stack([scale * (vector + mean) for scale in (1e-3, 1.0, 100.0) for mean in (0, 3)])
    with torch.no_grad():
        given: Tensor = copy.deepcopy(module).double()(vectors[None])[0].double()
    expected = replace(
        view, weight=view.weight.double(), bias=None if view.bias is None else view.bias.double()
    ).normed(vectors)
    if given.shape != expected.shape:
        return float("inf")
    return float(((given - expected).abs().amax(1) / expected.abs().amax(1).clamp_min(1e-30)).max())


def _view(module: nn.Module, template: ArchitectureSpec, facts: NormFacts) -> NormView:
    kind, offset, epsilon = facts
    return norm_view(module, replace(template, norm=kind, norm_offset=offset, norm_epsilon=epsilon))
