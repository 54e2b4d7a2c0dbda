"""Mean scores of layers and heads over the explained tokens of each type, and of the whole corpus."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Sums = NDArray[np.float64]
Type = str | None
"""None: the whole corpus."""


class ExplanationSums:
    """Sums of the scores of layers [L] and heads [L, H] while shards go by."""

    def __init__(self) -> None:
        self.counts: Counter[Type] = Counter()
        """Explained tokens by type."""
        self._sums: dict[str, dict[Type, Sums]] = defaultdict(dict)
        self._strongest: Counter[tuple[Type, int, int]] = Counter()

    def add(self, explanations: pa.Table) -> None:
        """Add a shard."""
        types = explanations["type"].to_pylist()
        for row, name in enumerate(types):
            self.counts.update({None, name})
            for column in ("attention_scores", "ffn_scores", "head_scores"):
                self._add(column, {None, name}, explanations[column][row].as_py())
            # Both ends of a ranking may name the same head.
            heads = {(head["layer"], head["head"]) for head in explanations["heads"][row].as_py() or ()}
            self._strongest.update((each, *head) for head in heads for each in {None, name})

    def layers(self) -> pa.Table:
        """The mean scores of each layer's attention and FFN."""
        rows = [row for name in self._types("attention_scores") for row in self._layer_rows(name)]
        return pa.Table.from_pylist(rows, schema=_LAYERS)

    def heads(self) -> pa.Table:
        """The mean score of each head, and the share of explained tokens whose strongest heads it is among."""
        rows = [row for name in self._types("head_scores") for row in self._head_rows(name)]
        order = [("type", "ascending"), ("mean_score", "descending"), ("layer", "ascending"), ("head", "ascending")]
        return pa.Table.from_pylist(rows, schema=_HEADS).sort_by(order)

    def _types(self, column: str) -> list[Type]:
        return sorted(self._sums[column], key=lambda name: (name is not None, name or ""))

    def _add(self, column: str, types: set[Type], scores: list[object] | None) -> None:
        if scores is None:
            return
        values = np.array(scores, np.float64)
        sums = self._sums[column]
        for name in types:
            sums[name] = sums[name] + values if name in sums else values

    def _layer_rows(self, name: Type) -> Iterator[dict[str, object]]:
        attention, ffn = (self._sums[column][name] / self.counts[name] for column in ("attention_scores", "ffn_scores"))
        for layer, (of_attention, of_ffn) in enumerate(zip(attention.tolist(), ffn.tolist(), strict=True)):
            yield {"type": name, "layer": layer, "attention_score": of_attention, "ffn_score": of_ffn}

    def _head_rows(self, name: Type) -> Iterator[dict[str, object]]:
        means = self._sums["head_scores"][name] / self.counts[name]
        for layer, head in np.argwhere(np.isfinite(means)).tolist():
            mean = means[layer, head]
            share = self._strongest[name, layer, head] / self.counts[name]
            yield {"type": name, "layer": layer, "head": head, "mean_score": float(mean), "strongest_share": share}


_LAYERS = pa.schema(
    {"type": pa.string(), "layer": pa.int32(), "attention_score": pa.float64(), "ffn_score": pa.float64()}
)
_HEADS = pa.schema(
    {
        "type": pa.string(),
        "layer": pa.int32(),
        "head": pa.int32(),
        "mean_score": pa.float64(),
        "strongest_share": pa.float64(),
    }
)
