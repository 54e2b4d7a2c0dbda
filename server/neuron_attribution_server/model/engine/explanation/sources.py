"""The value neurons that query parts start from: their sources, of one row and of many together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuron_attribution_server.model.attribution.host import Array, Ids, columns_on_device, on_device
from neuron_attribution_server.model.engine.explanation.rows import Row


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """Value neurons of one kind, [K]: their layers and units, where their keys read the residual stream, their scores.

    FFN neurons read at the explained position, attention neurons at their own.
    """

    layers: Ids
    units: Ids
    positions: Ids
    scores: Array

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, slots=True)
class Asked:
    """A row that asks for a query part, and the sources of one kind that it starts from."""

    row: Row
    sources: Sources


class SourceBatch:
    """The sources of several rows, by ascending layer: on the host what sizes follow from, and all on the device."""

    def __init__(self, asked: Sequence[Asked], device: torch.device) -> None:
        counts = [len(each.sources) for each in asked]
        columns = {name: np.concatenate([getattr(each.sources, name) for each in asked]) for name in Sources.__slots__}
        order = np.argsort(columns["layers"], kind="stable")
        self.count = len(asked)
        self.layers: Ids = columns["layers"][order]
        self.units: Ids = columns["units"][order]
        self.positions: Ids = columns["positions"][order]
        self.rows: Ids = np.repeat(np.arange(len(asked)), counts)[order]
        """Which of those that ask each source belongs to."""
        self.sequences: Ids = np.repeat(np.array([each.row.sequence for each in asked]), counts)[order]
        rows, sequences, positions = columns_on_device([self.rows, self.sequences, self.positions], device)
        self.row: Tensor = rows
        self.at = (sequences, positions)
        """Where the keys read the states [B, T, ...]."""
        self.scores = on_device(columns["scores"][order].astype(np.float32), device)
