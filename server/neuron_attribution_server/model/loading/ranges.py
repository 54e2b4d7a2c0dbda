"""How far each neuron's projection spreads over the vocabulary: what bounds decreases. Once per model, then remembered.

Minutes for a large model, so it is done when first needed, with a progress bar, and kept in the user's cache folder
under the model's revision. A cache that cannot be read or written costs time, never an answer.
"""

from __future__ import annotations

import logging
import os
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from neuron_attribution_server.model.attribution.projection import vocabulary_ranges
from neuron_attribution_server.model.attribution.states import Weights
from neuron_attribution_server.model.attribution.subvalues import each_chunk, stack_layers
from neuron_attribution_server.model.attribution.value_search import Kind, Ranges, subvalues_of

_log = logging.getLogger(__name__)


class VocabularyRanges:
    """Largest minus smallest value of every neuron's unscaled projection, [L, n] per kind."""

    def __init__(self, weights: Weights, cache: Path | None) -> None:
        self._weights = weights
        self._cache = cache
        self._ranges: Ranges | None = None
        self._layers: dict[tuple[Kind, int], Tensor] = {}

    def __call__(self) -> Ranges:
        """The ranges, computed at the first call; where that is stopped, the next one goes on where it was."""
        if self._ranges is None:
            self._ranges = self._load() or self._compute()
        return self._ranges

    def _load(self) -> Ranges | None:
        if self._cache is None or not self._cache.is_file():
            return None
        try:
            tensors = load_file(self._cache, device=str(self._weights.unembedding.weight.device))
            return {kind: tensors[kind.value] for kind in Kind}
        except (OSError, SafetensorError, KeyError) as error:
            _log.warning("vocabulary ranges are computed again: %s cannot be read: %s", self._cache, error)
            return None

    def _compute(self) -> Ranges:
        layers = len(self._weights.ffn_subvalues)
        with tqdm(total=2 * layers, desc="vocabulary ranges", unit="layer", disable=self._cache is None) as progress:
            for kind, layer in product(Kind, range(layers)):
                if (kind, layer) not in self._layers:
                    self._layers[kind, layer] = self._layer(kind, layer)
                progress.update()
        ranges = {kind: stack_layers([self._layers[kind, layer] for layer in range(layers)]) for kind in Kind}
        self._layers.clear()
        try:
            self._save(ranges)
        except (OSError, SafetensorError) as error:
            _log.warning("vocabulary ranges are not kept: %s cannot be written: %s", self._cache, error)
        return ranges

    def _layer(self, kind: Kind, layer: int) -> Tensor:
        unembedding, subvalues = self._weights.unembedding, subvalues_of(self._weights, kind)[layer]
        return each_chunk(subvalues, lambda rows: vocabulary_ranges(unembedding, rows))

    def _save(self, ranges: Ranges) -> None:
        """Written beside and renamed, so that another process never reads half a file."""
        if self._cache is None:
            return
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self._cache.parent, delete=False) as file:
            temporary = Path(file.name)
        try:
            save_file({kind.value: tensor.cpu().contiguous() for kind, tensor in ranges.items()}, temporary)
            os.replace(temporary, self._cache)
        finally:
            temporary.unlink(missing_ok=True)
