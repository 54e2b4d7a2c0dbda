"""What a description says of a layer, by what its parts write and read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.guessing.attention import (
    AttentionFacts,
    attention_facts,
    norms_between,
)
from neuron_attribution_server.model.architectures.guessing.feed_forward import feed_forward_facts
from neuron_attribution_server.model.architectures.guessing.numbers import ONE
from neuron_attribution_server.model.architectures.guessing.trace import LayerTrace, NoGuessError, same
from neuron_attribution_server.model.architectures.spec import FeedForward

ADDS_UP = 1e-4


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A description's fields about layers of one kind."""

    attention: AttentionFacts
    attention_write: str | None
    ffn_norm: str | None
    dense: FeedForward | None
    """Where there are experts, the network beside them."""
    ffn_write: str | None
    experts: str | None
    expert_outputs: tuple[str, ...]
    parallel: bool
    factor: float
    """Of everything that is written."""

    @property
    def norms(self) -> list[str]:
        """The norms that it names."""
        latent = self.attention.value_latent
        named = [self.attention.attention_norm, self.attention_write, self.ffn_norm, self.ffn_write]
        return [path for path in (*named, latent and latent[1]) if path]


def layer_facts(layer: LayerTrace, heads: int, config: Any) -> list[LayerFacts]:  # noqa: ANN401
    """Every description of a layer that adds up, most often one. Raises NoGuessError where none does."""
    found = []
    problem = "what attention and the FFN write does not add up to what its layers change, or not by one factor"
    for attention in attention_facts(layer, heads, config):
        output = next(call for call in layer.calls if call.path == attention.attention_output)
        for facts in feed_forward_facts(layer, attention.attention_output):
            for attention_write, first in _writes(layer, output.gave):
                if same(layer.read + first, layer.read):
                    raise NoGuessError("its attention writes nothing, so that what its FFN reads cannot be told")
                for ffn_write, second in _writes(layer, facts.written):
                    factor = _factor(layer, first, second)
                    if factor is None:
                        continue
                    between = layer.read + factor * first
                    problem = "something other than one norm is between the residual stream and the FFN"
                    found += [
                        LayerFacts(
                            attention=attention,
                            attention_write=attention_write,
                            ffn_norm=norm,
                            dense=facts.dense,
                            ffn_write=ffn_write,
                            experts=facts.experts,
                            expert_outputs=facts.outputs,
                            parallel=parallel,
                            factor=factor,
                        )
                        for source, parallel in ((between, False), (layer.read, True))
                        for norm in norms_between(layer, facts.read, source)
                    ]
    if not found:
        raise NoGuessError(problem)
    return found


def _writes(layer: LayerTrace, raw: Tensor) -> Iterator[tuple[str | None, Tensor]]:
    """What may be written of what a projection gives: that, or what a norm behind it makes of it."""
    yield None, raw
    for call in layer.taking(raw):
        if call.may_be_norm:
            yield call.path, call.gave


def _factor(layer: LayerTrace, attention: Tensor, ffn: Tensor) -> float | None:
    """The factor by which what is written adds up to what the layer changes; None where it does not."""
    change = (layer.gave - layer.read).double().flatten()
    written = torch.stack([attention.flatten(), ffn.flatten()], 1).double()
    if not bool(written.isfinite().all()):
        return None
    factors = torch.linalg.lstsq(written, change[:, None]).solution[:, 0]
    error = (written @ factors - change).abs().max() / change.abs().max()
    one, other = factors.tolist()
    return one if float(error) < ADDS_UP and abs(one - other) < ONE * abs(other) else None
