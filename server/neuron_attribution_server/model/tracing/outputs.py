"""What is followed back: the log odds of a token, or the difference of two logits, as they are and frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.checkpoints import checked
from neuron_attribution_server.model.attribution.exact_products import weighted_rows
from neuron_attribution_server.model.attribution.unembedding import Unembedding

READ_AT_ONCE = 64
"""Final residuals whose logits exist at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """The log odds of `targets` [E] at E positions, or their logits less that of a contrast, summed."""

    unembedding: Unembedding
    targets: Tensor
    contrast: int | None

    def value(self, finals: Tensor) -> Tensor:
        """What they are at final residuals [n, E, d], [n]."""
        rows, targets = finals.flatten(0, 1), self.targets.repeat(len(finals))
        found = [
            self._values(self.unembedding.own_logits(some), mine)
            for some, mine in checked(zip(rows.split(READ_AT_ONCE), targets.split(READ_AT_ONCE), strict=True))
        ]
        return torch.cat(found).view(len(finals), -1).sum(1)

    def gradients(self, finals: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of final residuals [E, d]: of the frozen output, and of what it really is, [E, d] each.

        Frozen are the final norm's scale, the other tokens' shares of their own probability and, where logits are
        capped, what that multiplies each of them by.
        """
        unembedding = self.unembedding
        pairs = [self._gradients(some, mine) for some, mine in zip(finals.split(1), self.targets.split(1), strict=True)]
        frozen, real = (torch.cat(each) for each in zip(*pairs, strict=True))
        scales, centred = unembedding.scale(finals)[:, None], unembedding.centre(finals)
        frozen, real = (unembedding.fold_gradient(each) / scales for each in (frozen, real))
        along = (real * centred).sum(-1, keepdim=True) / (finals.shape[-1] * scales.square())
        return frozen, real - along * centred

    def _values(self, logits: Tensor, targets: Tensor) -> Tensor:
        own = logits.gather(1, targets[:, None]).squeeze(1)
        if self.contrast is not None:
            return own - logits[:, self.contrast]
        return own - self._others(logits, targets).logsumexp(-1)

    def _gradients(self, finals: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of what the unembedding reads, folded and scaled, [n, d] each."""
        logits = self.unembedding.own_logits(finals)
        if self.contrast is None:
            weights = self._others(logits, targets).softmax(-1).neg_()
        else:
            weights = torch.zeros_like(logits)
            weights[:, self.contrast] = -1
        weights.scatter_add_(1, targets[:, None], torch.ones_like(weights[:, :1]))
        read = self.unembedding.weight
        cap = self.unembedding.cap
        if cap is None:
            found = weighted_rows(weights, read)
            return found, found
        ratios = (logits / cap).clamp(-1 + 1e-7, 1 - 1e-7)
        before = torch.where(logits == 0, 1, ratios / torch.atanh(ratios))
        return weighted_rows(weights * before, read), weighted_rows(weights * (1 - ratios.square()), read)

    def _others(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.scatter(1, targets[:, None], -torch.inf)
