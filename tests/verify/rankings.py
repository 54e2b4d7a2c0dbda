"""The engine's bounded rankings, and how they compare with every neuron's score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import AttributeOptions, Direction, Part
from neuron_attribution.results import Explanation, NeuronRanking, NeuronScore
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from torch import Tensor

from verify.brute_force import Scores
from verify.states import States

TOLERANCE = 1e-5
FIELDS = {"ffn": "ffn_value_neurons", "attention": "attention_value_neurons"}
PARTS = frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS})
DIRECTIONS = ("increase", "decrease", "contrast")


@dataclass(frozen=True)
class Comparison:
    """One ranking compared: what the engine scored, the largest score difference, and what is wrong with it, if so."""

    kind: str
    direction: str
    top_k: int
    neurons: int
    scored: int
    difference: float
    same_order: bool
    """The same neurons in the same order to the last place."""
    mistakes: tuple[str, ...]


def compare(engine: Engine, prompt: States, scores: dict[str, Scores], top_k: int) -> Iterator[Comparison]:
    """The engine's answers for one prompt, both kinds in every direction."""
    size = engine.facts.sizes.head_size
    plain, contrasted = _explain(engine, prompt, top_k, Direction.BOTH), _explain(engine, prompt, top_k, contrast=True)
    for kind, field in FIELDS.items():
        increase, contrast = scores[kind].increase, scores[kind].contrast
        yield _compare(getattr(plain, field), increase, kind, "increase", top_k, size)
        yield _compare(getattr(plain, f"{field}_decreasing"), increase, kind, "decrease", top_k, size)
        yield _compare(getattr(contrasted, field), contrast, kind, "contrast", top_k, size)


def _explain(
    engine: Engine,
    prompt: States,
    top_k: int,
    direction: Direction = Direction.INCREASE,
    *,
    contrast: bool = False,
) -> Explanation:
    options = AttributeOptions(parts=PARTS, top_k=top_k, direction=direction, projection_top_k=0)
    task = AttributeTask(
        token_ids=prompt.tokens,
        explained=(ExplainedToken(len(prompt.tokens) - 1, prompt.target),),
        contrast=prompt.contrast if contrast else None,
        options=options,
    )
    (outcome,) = engine.run([task])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.explanations[0]


def _compare(
    ranking: NeuronRanking, scores: Tensor, kind: str, direction: str, top_k: int, head_size: int
) -> Comparison:
    """Only scores closer than the tolerance may change places, within the ranking and across its end."""
    sign = -1 if direction == "decrease" else 1
    every = sign * scores.flatten()
    ids = torch.tensor([_index(entry, scores.shape, head_size) for entry in ranking.neurons])
    got = sign * torch.tensor([entry.score for entry in ranking.neurons], dtype=torch.float64)
    expected = every.topk(min(top_k, len(every)))
    tolerance = TOLERANCE * max(1.0, expected.values.abs().max().item())
    coverage = ranking.coverage
    facts = {
        "size": len(ids) == len(expected.indices) == len(ids.unique()),
        "set": _same_set(ids, every, expected.values[-1].item(), tolerance),
        "order": bool((every[ids].diff() <= tolerance).all()),
        "scores": bool(((got - every[ids]).abs() <= tolerance).all()),
        "coverage": coverage.exact and len(ids) <= coverage.scored <= coverage.neurons == len(every),
    }
    return Comparison(
        kind=kind,
        direction=direction,
        top_k=top_k,
        neurons=coverage.neurons,
        scored=coverage.scored,
        difference=(got - every[ids]).abs().max().item(),
        same_order=torch.equal(ids, expected.indices),
        mistakes=tuple(name for name, right in facts.items() if not right),
    )


def _same_set(ids: Tensor, every: Tensor, threshold: float, tolerance: float) -> bool:
    """No neuron is missing that is clearly among the best, and none is there that is clearly not."""
    missing = every.clone()
    missing[ids] = -torch.inf
    return bool(missing.max() <= threshold + tolerance) and bool(every[ids].min() >= threshold - tolerance)


def _index(entry: NeuronScore, shape: torch.Size, head_size: int) -> int:
    """Where the neuron's score is in the flattened [L, n, positions]."""
    _, units, positions = shape
    neuron = entry.neuron
    if isinstance(neuron, FfnNeuron):
        return neuron.layer * units + neuron.index
    unit = neuron.head * head_size + neuron.index
    assert entry.position is not None
    return (neuron.layer * units + unit) * positions + entry.position
