"""Norm modules read as formulas."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from neuron_attribution.errors import FailedPreconditionError
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.parameters import parameter
from neuron_attribution_server.model.architectures.projections import bias_of
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, NormKind
from neuron_attribution_server.model.attribution.subvalues import FrozenWrite


@dataclass(frozen=True, slots=True, eq=False)
class NormView:
    """A norm: weight [d] or [], bias [d] or None, epsilon (None: it divides by nothing), whether it centres."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float | None
    centred: bool

    def times(self, factor: float) -> NormView:
        """The norm, of which everything is multiplied."""
        if factor == 1:
            return self
        return replace(self, weight=factor * self.weight, bias=None if self.bias is None else factor * self.bias)

    def centre(self, vectors: Tensor) -> Tensor:
        """c(v) of vectors [..., d]."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def fold(self, vectors: Tensor) -> Tensor:
        """The norm of vectors [..., d] without its scale and bias."""
        return self.weight * self.centre(vectors)

    def without_bias(self, vectors: Tensor) -> Tensor:
        """The norm of vectors [..., d], bias left out."""
        return self.fold(vectors) / self.scale(vectors)[..., None]

    def normed(self, vectors: Tensor) -> Tensor:
        """The norm of vectors [..., d], bias included."""
        scaled = self.without_bias(vectors)
        return scaled if self.bias is None else scaled + self.bias

    def scale(self, vectors: Tensor) -> Tensor:
        """The scale s [...] that the norm divides vectors [..., d] by."""
        if self.epsilon is None:
            return vectors.new_ones(vectors.shape[:-1])
        return (self.centre(vectors).square().mean(-1) + self.epsilon).sqrt()


@dataclass(frozen=True, slots=True, eq=False)
class WriteView:
    """What stands between an output projection and the residual stream: a norm or None, then a factor."""

    norm: NormView | None
    multiplier: float

    @property
    def frozen(self) -> FrozenWrite | None:
        """Its linear part, the norm's scale left out; None where nothing stands between."""
        if self.norm is not None:
            return FrozenWrite(self.multiplier * self.norm.weight, self.norm.centred)
        return None if self.multiplier == 1 else FrozenWrite(torch.tensor(self.multiplier), centred=False)

    def constant(self, bias: Tensor | None, scales: Tensor | None) -> Tensor | None:
        """What is written that no neuron writes, [..., d]: the projection's bias and the norm's."""
        if bias is not None and self.frozen is not None:
            bias = self.frozen.apply(bias)
        if scales is not None and bias is not None:
            bias = bias / scales[..., None]
        if self.norm is None or self.norm.bias is None:
            return bias
        own = self.multiplier * self.norm.bias
        return own if bias is None else bias + own


def norm_view(module: nn.Module, spec: ArchitectureSpec) -> NormView:
    """Read a norm module's weight, bias and epsilon, by whichever of its usual names each goes."""
    epsilon = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), None)
    epsilon = spec.norm_epsilon if epsilon is None else epsilon
    if epsilon is None:
        raise FailedPreconditionError(
            f"model refused: the {spec.family} architecture has a norm where this model has {type(module).__name__}",
            reason="UNSUPPORTED_ARCHITECTURE",
        )
    weight = parameter(module, "weight")
    return NormView(
        torch.ones(()) if weight is None else weight.float() + spec.norm_offset,
        bias_of(module),
        float(epsilon),
        spec.norm is NormKind.LAYER,
    )


def no_norm() -> NormView:
    """What stands for a norm where there is none."""
    return NormView(torch.ones(()), None, None, centred=False)
