"""Numbers of a run: rates, quantiles of latency, counts of statuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from load.offering import OK, Sample

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Summary:
    """Samples that came within `seconds`."""

    samples: Sequence[Sample]
    seconds: float

    @property
    def answered(self) -> list[Sample]:
        """The calls that did not fail."""
        return [sample for sample in self.samples if sample.code == OK]

    @property
    def codes(self) -> Counter[str]:
        """How many calls ended with each status."""
        return Counter(sample.code for sample in self.samples)

    @property
    def offered_rate(self) -> float:
        """Calls a second that came."""
        return len(self.samples) / self.seconds

    @property
    def achieved_rate(self) -> float:
        """Calls a second that were answered, until the last answer."""
        return len(self.answered) / max([self.seconds, *(sample.ended for sample in self.answered)])

    @property
    def failed_share(self) -> float:
        """The part of the calls that failed."""
        return 1 - len(self.answered) / len(self.samples) if self.samples else 0.0

    @property
    def latencies(self) -> list[float]:
        """Seconds of the answered calls, in order of length."""
        return sorted(sample.latency for sample in self.answered)

    @property
    def lateness(self) -> list[float]:
        """Seconds by which calls were sent too late, in order of length."""
        return sorted(sample.lateness for sample in self.samples)

    def of(self, kind: str) -> Summary:
        """The same of one kind of request."""
        return Summary([sample for sample in self.samples if sample.kind == kind], self.seconds)


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of the values do not exceed; not a number where there are none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if values else float("nan")
