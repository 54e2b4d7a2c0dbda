"""The engine's frozen model of one prompt, whole: every neuron at every position, nothing pruned."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.requests import Subkey
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.model.tracing.frozen.model import FrozenModel, frozen_model
from neuron_attribution_server.model.tracing.frozen.sweeps import Edges, Place, Relevances, edges, relevances
from neuron_attribution_server.model.tracing.outputs import Output
from torch import Tensor

from reference.tiny_families import tiny_family


@dataclass(frozen=True)
class Traced:
    """The frozen model, the output's gradients [T, d], and its value."""

    view: ModelView
    captured: CapturedStates
    frozen: FrozenModel
    output: Tensor
    value: float

    @functools.cached_property
    def places(self) -> list[Place]:
        """Every neuron at every position where it is active."""
        return [
            Place(number, part.first + unit, position)
            for number, layer in enumerate(self.frozen.layers)
            for part in layer.ffn
            for position in (range(self.frozen.length) if part.positions is None else part.positions.tolist())
            for unit in range(part.count)
        ]

    def activations(self, places: Sequence[Place]) -> Tensor:
        """Theirs, [n]."""
        return self._of([part.activations for layer in self.frozen.layers for part in layer.ffn], places)

    def relevances(self) -> Relevances:
        """Of everything."""
        return relevances(self.frozen, self.output)

    def relevance_of(self, found: Relevances, places: Sequence[Place]) -> Tensor:
        """Of some neurons, [n]."""
        return self._of([part for layer in found.ffn for part in layer], places)

    def _of(self, parts: Sequence[Tensor], places: Sequence[Place]) -> Tensor:
        """Numbers of every part's neurons, [P, n] each, of some of them."""
        every = self.places
        found = torch.cat([part.flatten() for part in parts])
        if len(places) == len(every):
            return found
        numbers = {place: number for number, place in enumerate(every)}
        return found[[numbers[place] for place in places]]

    def edges(self, targets: Sequence[Place], sources: Sequence[Place]) -> Edges:
        """To the output and targets."""
        return edges(self.frozen, self.output, targets, sources)


def traced(
    engine: Engine,
    token_ids: Sequence[int],
    positions: Sequence[int],
    targets: Sequence[int],
    contrast: int | None = None,
    subkey: Subkey = Subkey.UP,
) -> Traced:
    """A prompt's pass, frozen."""
    view = engine._view
    with torch.inference_mode():
        rows = ExplainedRows.from_counts([range(len(token_ids))], view.device)
        captured = capture(view, [token_ids], rows)
        finals = captured.inputs[-1][0, list(positions)].float()
        output = Output(engine._unembedding, torch.tensor(list(targets)), contrast)
        gradients, _ = output.gradients(finals)
        frozen = frozen_model(view, captured, subkey)
        whole = torch.zeros_like(frozen.embeddings).index_add_(0, torch.tensor(list(positions)), gradients)
        return Traced(view, captured, frozen, whole, float((gradients * finals).sum()))


@functools.cache
def engine_of(name: str) -> Engine:
    """A family's tiny model as it is served, made once."""
    return engine_from(tiny_family(name), None, name)
