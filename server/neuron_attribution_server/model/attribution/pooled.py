"""Exact increases that several steps ask for, computed together: to read the vocabulary costs, however few ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from neuron_attribution_server.model.attribution.objectives import Multiples, Objective, Vectors, each_of
from neuron_attribution_server.model.attribution.search_seconds import SearchSeconds
from neuron_attribution_server.model.attribution.subvalues import join

MOST_TOGETHER = 1024
"""Vectors that are put together: more read the vocabulary several times in any case, and would be copied."""


@dataclass(slots=True, eq=False)
class _Asked:
    vectors: Vectors
    bases: Tensor
    weak: bool
    increases: Tensor | None = None


class PooledIncreases:
    """The increases of an objective."""

    def __init__(self, objective: Objective, seconds: SearchSeconds) -> None:
        self.objective = objective
        self._seconds = seconds
        self._waiting: list[_Asked] = []

    def ask(self, vectors: Vectors, bases: Tensor, *, weak: bool = False) -> Callable[[], Tensor]:
        """What gives f(base + v) - f(base) of vectors [C, d] later, as the objective's `increases` does.

        It computes all that has been asked for by then.
        """
        asked = _Asked(vectors, bases, weak)
        self._waiting.append(asked)

        def result() -> Tensor:
            if asked.increases is None:
                self._compute()
            assert asked.increases is not None
            return asked.increases

        return result

    def _compute(self) -> None:
        waiting, self._waiting = self._waiting, []
        plain = [each for each in waiting if not isinstance(each.vectors, Multiples)]
        few = sum(len(each.bases) for each in plain) <= MOST_TOGETHER
        groups = ([plain] if plain else []) if few else [[each] for each in plain]
        groups += [[each] for each in waiting if isinstance(each.vectors, Multiples)]
        for together in groups:
            bases = join([each.bases for each in together], 0)
            with self._seconds.scoring():
                found = self.objective.increases(_joined(together), bases, weak=any(each.weak for each in together))
            for each, increases in zip(together, found.split([len(each.bases) for each in together]), strict=True):
                each.increases = increases


def _joined(together: Sequence[_Asked]) -> Vectors:
    return together[0].vectors if len(together) == 1 else join([each_of(each.vectors) for each in together], 0)
