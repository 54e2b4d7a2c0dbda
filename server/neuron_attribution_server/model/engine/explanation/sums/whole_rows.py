"""The rows of a group that are taken together, and what is searched for in their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from neuron_attribution.neurons import Head
from neuron_attribution.requests import Part

from neuron_attribution_server.model.attribution.host import Array
from neuron_attribution_server.model.attribution.search.summed_neurons import Together
from neuron_attribution_server.model.attribution.search.summed_search import FoundSum, SummedSearch, WantedSum
from neuron_attribution_server.model.attribution.search.value_search import Kind, ValueSearch
from neuron_attribution_server.model.engine.explanation.heads import highest_heads
from neuron_attribution_server.model.engine.explanation.rows import Row
from neuron_attribution_server.model.engine.explanation.value_rankings import PARTS, SIGNS
from neuron_attribution_server.tasks.tasks import AttributeTask

Ends = Mapping[tuple[Kind, int], FoundSum]
"""What was found of each kind at each end."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeRows:
    """The rows of one task, which follow each other in their group."""

    task: AttributeTask
    together: Together

    @property
    def signs(self) -> tuple[int, ...]:
        """The ends of rankings that are asked for."""
        return SIGNS[self.task.options.direction]

    def sum(self, values: Array) -> Array:
        """Sums of what every row of the group has [E, ...], in float32."""
        mine = values[self.together.rows].astype(np.float64)
        summed: Array = np.tensordot(self.together.weights, mine, 1).astype(np.float32)
        return summed

    def heads(self, scores: Array, sign: int) -> list[tuple[Head, float]]:
        """The heads at one end of their sums, by scores [E, L, H]."""
        return highest_heads(self.sum(scores), self.task.options.head_top_k, sign)

    def chosen_heads(self, scores: Array | None) -> list[Head]:
        """The heads whose positions are asked for."""
        if scores is None or Part.HEAD_POSITIONS not in self.task.summed_parts:
            return []
        return list(dict.fromkeys(head for sign in self.signs for head, _ in self.heads(scores, sign)))

    def wanted(self) -> list[WantedSum]:
        """The rankings that are asked for."""
        k, over_positions = self.task.options.top_k, self.task.sums_over_positions
        return [
            WantedSum(self.together, kind, sign, k, kind is Kind.ATTENTION and over_positions)
            for kind, part in PARTS.items()
            if part in self.task.summed_parts
            for sign in self.signs
        ]


def whole_rows(rows: Sequence[Row]) -> list[WholeRows]:
    """Those of each task of a group that takes its tokens together."""
    found = []
    for whole, places in groupby(range(len(rows)), key=lambda place: rows[place].whole):
        if whole is not None:
            first = next(places)
            weights = whole.weights
            found.append(WholeRows(whole.task, Together(slice(first, first + len(weights)), weights)))
    return found


def searched(search: ValueSearch, wholes: Sequence[WholeRows]) -> list[Ends]:
    """The rankings of each, found in one search."""
    wanted = [whole.wanted() for whole in wholes]
    found = iter(SummedSearch(search).find([want for each in wanted for want in each]))
    return [{(want.kind, want.sign): next(found) for want in each} for each in wanted]
