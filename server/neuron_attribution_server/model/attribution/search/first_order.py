"""Bounds of every value neuron's increase from the slope at its base (method: first-order bound)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.methods import FromIncrease
from neuron_attribution_server.model.attribution.search.value_neurons import ValueNeurons


@dataclass(frozen=True, slots=True, eq=False)
class FirstOrder:
    """What bounds the neurons of one kind at E rows: n units per layer."""

    products: Tensor
    """<slope, subvalue>, [E, L, n]."""
    slack: Tensor
    """Rounding slack of a unit coefficient, [E, L, n]."""
    constant: float
    """Rounding slack of every neuron."""
    scale: Tensor
    """The final norm's, [E]."""
    base_values: Tensor
    """The objective at each layer's base, [E, L]."""
    bends: Tensor | None = None
    """How far the objective may bend away from its slope for a unit coefficient over a scale of one, [L, n]; None where
    it is concave."""

    def scores(
        self,
        neurons: ValueNeurons,
        rows: slice,
        layers: slice,
        score: FromIncrease,
        sign: int,
        ranges: Tensor | None = None,
    ) -> Tensor:
        """At least sign * score of every neuron, as values are laid out.

        The increase is bounded above (sign 1) by Jensen's inequality, and below (-1) by Hoeffding's lemma:
        log E[e^D] <= E[D] + range(D)^2 / 8. Logits with a soft-cap may bend further (see capped_objectives). `ranges`
        [L, n] are the largest minus the smallest logit of a unit coefficient over a scale of one; without, the
        objective is linear.
        """
        coefficients = neurons.coefficients(rows, layers)
        bounds = coefficients * neurons.laid_out(self.products[rows, layers])
        bounds.addcmul_(coefficients.abs(), neurons.laid_out(self.slack[rows, layers]), value=sign)
        scale = self.scale[rows, None, None]
        if sign < 0 and ranges is not None:
            bounds.sub_((coefficients * neurons.laid_out(ranges[layers] / scale)).square_(), alpha=0.125)
        if self.bends is not None:
            bends = neurons.laid_out(self.bends[layers] / scale.square())
            bounds.addcmul_(coefficients.square(), bends, value=sign)
        bounds.add_(sign * self.constant)
        found = score(bounds, self.base_values[rows, layers, None, None, None])
        return found if sign > 0 else torch.neg(found)
