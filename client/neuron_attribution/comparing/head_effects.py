"""What a prediction loses when each head in turn is zeroed: which requests find that, and what their answers come to.

The first request zeroes the first head and tells the prompt's length and the token to watch; the others, of bounded
size, are sent a few at a time. Where the server has less memory than that takes, they are halved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

import numpy as np

from neuron_attribution.comparing.predictions import Steps
from neuron_attribution.comparisons import HeadEffects
from neuron_attribution.errors import InvalidArgumentError, NeuronAttributionError, ResourceExhaustedError
from neuron_attribution.neurons import Head
from neuron_attribution.requests import Intervention
from neuron_attribution.results import InterveneResult, InterventionResult, Limits
from neuron_attribution.transport import calls
from neuron_attribution.transport.calls import TextOrIds

TOKENS_AT_ONCE = 2048
"""Tokens of all reruns in one request, where the server's own limits are not lower."""
REQUESTS_AT_ONCE = 4
TOO_LARGE = ("NEEDS_TOO_MUCH_MEMORY", "OUT_OF_MEMORY")
"""Why a server refuses what a smaller request may get."""


class HeadEffectArguments(TypedDict, total=False):
    """What `head_effects` takes besides the prompt: fields of InterveneRequest."""

    target: str | int | None
    add_special_tokens: bool | None
    model: str


def head_effects(prompt: TextOrIds, **arguments: Unpack[HeadEffectArguments]) -> Steps[HeadEffects]:
    """The steps that zero every head of the model in turn."""
    (info,) = yield [(0, calls.get_model(arguments.get("model", "")))]
    shape = (info.sizes.layers, info.sizes.heads)
    without = {number for number, layer in enumerate(info.layers) if not layer.heads}
    heads = [Head(*place) for place in np.ndindex(shape) if place[0] not in without]
    (first,) = yield [(0, calls.intervene(prompt, _zeroed(heads[:1]), **arguments))]
    arguments["target"] = first.before.target.token.id
    count = reruns_at_once(info.limits, len(first.tokens))
    results = list(first.results)
    while missing := heads[len(results) :]:
        together = _in_requests(missing[: REQUESTS_AT_ONCE * count], count)
        try:
            answers = yield [(0, calls.intervene(prompt, _zeroed(some), **arguments)) for some in together]
        except (InvalidArgumentError, ResourceExhaustedError) as error:
            if len(together[0]) == 1 or not _asks_for_fewer(error):
                raise
            count = len(together[0]) // 2
        else:
            results += [result for answer in answers for result in answer.results]
    return _effects(first, dict(zip(heads, results, strict=True)), shape)


def reruns_at_once(limits: Limits, length: int) -> int:
    """How many heads of a prompt of this many tokens one request may name, beside the plain prompt."""
    tokens = min(TOKENS_AT_ONCE, limits.batch_tokens, limits.queued_tokens)
    return max(1, min(limits.intervention_sets, limits.neurons, tokens // length - 1))


def _asks_for_fewer(error: NeuronAttributionError) -> bool:
    return error.reason in TOO_LARGE or any(violation.field == "sets" for violation in error.violations)


def _zeroed(heads: Sequence[Head]) -> list[tuple[Intervention]]:
    return [(Intervention(heads=(head,)),) for head in heads]


def _in_requests(heads: Sequence[Head], count: int) -> list[Sequence[Head]]:
    return [heads[start : start + count] for start in range(0, len(heads), count)]


def _effects(first: InterveneResult, results: Mapping[Head, InterventionResult], shape: tuple[int, int]) -> HeadEffects:
    """Not numbers where there is no head."""
    found = np.full((3, *shape), np.nan, np.float32)
    for head, result in results.items():
        target = result.after.target
        found[:, head.layer, head.head] = target.probability, target.log_probability, result.kl_divergence
    return HeadEffects(
        model=first.model,
        tokens=first.tokens,
        target=first.before.target,
        probabilities=found[0],
        log_probabilities=found[1],
        kl_divergences=found[2],
    )
