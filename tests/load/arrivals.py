"""When callers come: a Poisson process, that of many callers who know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from load.mix import Kind


@dataclass(frozen=True, slots=True)
class Arrival:
    """One caller: the seconds after the start at which it comes, and what it asks for."""

    at: float
    kind: Kind


def poisson(rate: float, seconds: float, kinds: Sequence[Kind], generator: np.random.Generator) -> list[Arrival]:
    """Callers in order of time, `rate` a second on average; kinds by weight. What comes does not depend on answers."""
    times = np.sort(generator.uniform(0, seconds, generator.poisson(rate * seconds)))
    weights = np.array([kind.weight for kind in kinds])
    chosen = generator.choice(len(kinds), size=len(times), p=weights / weights.sum())
    return [Arrival(float(at), kinds[index]) for at, index in zip(times, chosen, strict=True)]
