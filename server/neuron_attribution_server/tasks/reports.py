"""What a worker tells of a batch beside its answers: times, neurons, memory. The front end adds it up and shows it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from neuron_attribution.results import NeuronRanking

from neuron_attribution_server.tasks.answers import AttributeOutcome, InterveneOutcome, Outcome, TraceOutcome


@dataclass(frozen=True, slots=True)
class PassReport:
    """One forward pass and its scoring, of which bounding and exact scoring are parts; seconds."""

    started: float
    """Seconds since 1970."""
    forward: float
    scoring: float
    bound: float
    exact: float


@dataclass(slots=True)
class RankingCounts:
    """Value neurons of one part, added up over rankings, and the rankings that are not claimed to be exact."""

    existing: int = 0
    bounded: int = 0
    scored: int = 0
    inexact: int = 0

    def add(self, ranking: NeuronRanking | None) -> None:
        """Count one ranking, if it was asked for."""
        if ranking is None:
            return
        coverage = ranking.coverage
        self.existing += coverage.neurons
        self.bounded += coverage.bounded
        self.scored += coverage.scored
        self.inexact += not coverage.exact


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """A GPU's memory as PyTorch sees it after a batch, in bytes."""

    allocated: int
    reserved: int
    total: int


@dataclass(slots=True)
class BatchReport:
    """What happened while one batch ran."""

    device: str = ""
    seconds: float = 0.0
    """What the worker spent on it; not what went first in between."""
    tasks: int = 0
    """How many tasks it had, where the seconds are known."""
    stopped: bool = False
    """Whether it was stopped because nobody waited for it any more."""
    has_prepared: bool = False
    """Whether it did a part of what is prepared once for all requests: its seconds are not its own."""
    passes: list[PassReport] = field(default_factory=list)
    explained_tokens: int = 0
    ffn: RankingCounts = field(default_factory=RankingCounts)
    attention: RankingCounts = field(default_factory=RankingCounts)
    out_of_memory_splits: int = 0
    out_of_memory_failures: int = 0
    gpu_memory: GpuMemory | None = None

    def ran(self, device: str, outcomes: list[Outcome]) -> None:
        """Note what one run of the engine gave."""
        self.device, self.gpu_memory = device, gpu_memory(device)
        attributions = [outcome for outcome in outcomes if isinstance(outcome, AttributeOutcome)]
        passed = [
            outcome for outcome in outcomes if isinstance(outcome, AttributeOutcome | InterveneOutcome | TraceOutcome)
        ]
        for first in attributions[:1] or passed[:1]:  # its times are those of the whole pass
            bound, exact = (first.bound, first.exact) if isinstance(first, AttributeOutcome) else (0.0, 0.0)
            self.passes.append(PassReport(first.started, first.forward, first.scoring, bound, exact))
        for outcome in attributions:
            whole = outcome.aggregate
            self.explained_tokens += len(outcome.explanations) or (0 if whole is None else len(whole.targets))
        for explanation in (each for outcome in attributions for each in (*outcome.explanations, outcome.aggregate)):
            if explanation is None:
                continue
            self.ffn.add(explanation.ffn_value_neurons)
            self.ffn.add(explanation.ffn_value_neurons_decreasing)
            self.attention.add(explanation.attention_value_neurons)
            self.attention.add(explanation.attention_value_neurons_decreasing)


def gpu_memory(device: str) -> GpuMemory | None:
    """What PyTorch, which is not imported for it, holds of a GPU; None of another device."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_initialized():
        return None
    held = torch.cuda.memory_stats_as_nested_dict(device)
    return GpuMemory(
        allocated=held["allocated_bytes"]["all"]["current"],
        reserved=held["reserved_bytes"]["all"]["current"],
        total=torch.cuda.get_device_properties(device).total_memory,
    )
