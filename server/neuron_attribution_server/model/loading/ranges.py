"""How far each neuron's projection spreads over the vocabulary: what bounds decreases. Once per model, then remembered.

It takes seconds to minutes, layer by layer, while nothing else is to be done; a request that needs it before does what
is left. What is done is kept in the user's cache folder under the model's revision. A cache that cannot be read or
written costs time, never an answer.
"""

from __future__ import annotations

import logging
import os
import time
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuron_attribution_server.model.attribution.projection import vocabulary_ranges
from neuron_attribution_server.model.attribution.search.value_search import Kind, Ranges, subvalues_of
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.attribution.unembedding import Unembedding

_RANGES = "ranges"
_TRIED = 256
"""Vectors that are projected to see which type of numbers is faster."""

_SMALL = 1 << 20
"""Numbers of an unembedding for which it does not matter."""

_log = logging.getLogger(__name__)


class VocabularyRanges:
    """At least the largest minus the smallest value of every neuron's unscaled projection, [L, n] per kind."""

    def __init__(self, weights: Weights, folder: Path | None) -> None:
        self._weights = weights
        self._folder = folder
        self._missing = list(product(Kind, range(len(weights.ffn_subvalues))))
        self._layers: dict[tuple[Kind, int], Tensor] = {}
        self._ranges: Ranges | None = None
        self._halves: bool | None = None
        self.parts = len(self._missing)
        """How many there are to do, one for each kind and layer."""

    @property
    def done(self) -> int:
        """How many of them are."""
        return self.parts - len(self._missing)

    def __call__(self) -> Ranges:
        """The ranges; what is missing is computed now. Where that is stopped, the next one goes on where it was."""
        while self.advance():
            pass
        if self._ranges is None:
            layers = range(len(self._weights.ffn_subvalues))
            self._ranges = {kind: stack_layers([self._layers[kind, layer] for layer in layers]) for kind in Kind}
        return self._ranges

    @torch.inference_mode()
    def advance(self) -> bool:
        """Do what comes next; whether there was anything. A part that was begun meanwhile may be done twice."""
        if not self._missing:
            return False
        part = self._missing[0]
        kept = self._load(part)
        found = self._compute(*part) if kept is None else kept
        if kept is None and part not in self._layers:
            self._save(part, found)
        self._layers[part] = found
        self._missing = [each for each in self._missing if each not in self._layers]
        return True

    def _compute(self, kind: Kind, layer: int) -> Tensor:
        unembedding, subvalues = self._weights.unembedding, subvalues_of(self._weights, kind)[layer]
        if not len(subvalues):
            return torch.zeros(0, device=unembedding.gamma.device)
        if self._halves is None:
            _log.info("computing the vocabulary ranges of %d layers of neurons in idle time", len(self._missing))
            first = torch.zeros(1, dtype=torch.long, device=unembedding.gamma.device)
            self._halves = _halves_are_faster(unembedding, subvalues.rows(first))
        halves = self._halves
        return subvalues.each(lambda rows: vocabulary_ranges(unembedding, rows, halves=halves))

    def _load(self, part: tuple[Kind, int]) -> Tensor | None:
        file = self._file(part)
        if file is None:
            return None
        kind, layer = part
        try:
            if not file.is_file():
                return None
            found = load_file(file, device=str(self._weights.unembedding.weight.device))[_RANGES]
        except (OSError, SafetensorError, KeyError) as error:
            _log.warning("vocabulary ranges are computed again: %s cannot be read: %s", file, error)
            return None
        return found if len(found) == len(subvalues_of(self._weights, kind)[layer]) else None

    def _save(self, part: tuple[Kind, int], found: Tensor) -> None:
        """Written beside and renamed, so that another process never reads half a file."""
        file = self._file(part)
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=file.parent, delete=False) as open_file:
                temporary = Path(open_file.name)
            try:
                save_file({_RANGES: found.cpu().contiguous()}, temporary)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            _log.warning("vocabulary ranges are not kept: %s cannot be written: %s", file, error)

    def _file(self, part: tuple[Kind, int]) -> Path | None:
        kind, layer = part
        return None if self._folder is None else self._folder / f"{kind.value}-{layer}.safetensors"


def _halves_are_faster(unembedding: Unembedding, row: Tensor) -> bool:
    """Whether bfloat16 products are, on this device: some processors have units for them, others none."""
    if unembedding.weight.numel() < _SMALL:
        return False
    rows = row.float().expand(_TRIED, -1)

    def seconds(*, halves: bool) -> float:
        started = time.perf_counter()
        vocabulary_ranges(unembedding, rows, halves=halves).sum().item()
        return time.perf_counter() - started

    return min(seconds(halves=True) for _ in range(2)) < min(seconds(halves=False) for _ in range(2))
