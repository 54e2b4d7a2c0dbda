"""Drawn tokens: from the model's own distribution, the same ones from the same seed whatever is beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from neuron_attribution.generation import FinishReason, Generation, Sampling
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import AttributeOptions, Intervention, LayerPart, Part, Scale
from neuron_attribution_server.model.engine.sampling import processors
from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask
from reference.compared import Compared

PROMPT = (45, 73, 93, 18, 59, 56)
SAMPLING = Sampling(temperature=1.5, seed=3)
FEW = AttributeOptions(parts=frozenset({Part.LAYERS}))
NOTHING = (Intervention(Scale(1.0), neurons=(FfnNeuron(0, 0),)),)
MUCH = (Intervention(layers=(LayerPart(1, "ffn"), LayerPart(2, "ffn"))),)


def drawn(tiny: Compared, sampling: Sampling | None, stops: tuple[int, ...] = ()) -> tuple[tuple[int, ...], Generation]:
    task = AttributeTask(token_ids=PROMPT, generate=6, sampling=sampling, stops=stops, options=FEW)
    [outcome] = tiny.engine.run([task])
    return outcome.token_ids[len(PROMPT) :], outcome.generation


def continuations(tiny: Compared, sets: tuple, sampling: Sampling) -> list[tuple[int, ...]]:
    [outcome] = tiny.engine.run([InterveneTask(token_ids=PROMPT, sets=sets, generate=6, sampling=sampling)])
    states = [outcome.before, *(each.after for each in outcome.results)]
    assert {state.generation.seed for state in states} == {sampling.seed}
    return [tuple(token.id for token in state.continuation) for state in states]


def frequencies(logits: torch.Tensor, sampling: Sampling, draws: int = 4000) -> np.ndarray:
    """How often each token is the largest, by seeds."""
    found = Counter()
    for seed in range(draws):
        changed = logits
        for processor in processors(replace(sampling, seed=seed), prompt=0):
            changed = processor(torch.zeros((1, 0), dtype=torch.long), changed)
        found[int(changed.argmax())] += 1
    return np.array([found[token] for token in range(logits.shape[1])]) / draws


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.6), Sampling(top_k=5, top_p=0.8)],
    ids=["plain", "colder", "top k", "top p", "both"],
)
def test_tokens_are_drawn_as_often_as_they_are_probable(sampling: Sampling) -> None:
    """Computed by hand: divided by the temperature, the most probable k, then as few as reach p, renormalised."""
    logits = torch.tensor([[0.3, 2.0, -1.0, 1.5, 0.0, 1.0, -4.0, 0.9]])
    probabilities = np.exp(logits.numpy()[0].astype(float) / sampling.temperature)
    order = np.argsort(-probabilities)[: sampling.top_k or None]
    kept = probabilities[order] / probabilities[order].sum()
    kept = kept[: int(np.searchsorted(kept.cumsum(), sampling.top_p - 1e-9)) + 1]
    wanted = np.zeros_like(probabilities)
    wanted[order[: len(kept)]] = kept / kept.sum()
    got = frequencies(logits, sampling)
    assert set(got.nonzero()[0]) <= set(wanted.nonzero()[0])
    deviation = np.sqrt(wanted * (1 - wanted) / 4000)
    assert (np.abs(got - wanted) <= 5 * deviation).all()


def test_the_places_of_a_text_have_luck_of_their_own() -> None:
    """One place's luck is not the next one's, nor another seed's."""
    level = torch.zeros((1, 50))
    chosen = [
        [int(processors(Sampling(seed=seed), 2)(torch.zeros((1, 2 + step), dtype=torch.long), level).argmax())]
        for seed in (0, 1, 2**64 - 1)
        for step in range(8)
    ]
    assert len({token for [token] in chosen}) > 12


def test_a_seed_repeats_and_another_differs(tiny: Compared) -> None:
    tokens, generation = drawn(tiny, SAMPLING)
    assert generation == Generation(FinishReason.LENGTH, 3)
    assert drawn(tiny, SAMPLING) == (tokens, generation)
    others = {drawn(tiny, replace(SAMPLING, seed=seed))[0] for seed in range(4, 9)}
    assert len({tokens, *others}) > 3
    greedy, plain = drawn(tiny, None)
    assert plain == Generation(FinishReason.LENGTH, None)
    assert greedy == drawn(tiny, replace(SAMPLING, top_k=1))[0] == drawn(tiny, replace(SAMPLING, top_p=1e-9))[0]


def test_what_is_beside_a_generation_changes_nothing(tiny: Compared) -> None:
    """Neither the tasks of its batch nor the sets beside it; and what changes nothing has the same luck."""
    task = AttributeTask(token_ids=PROMPT, generate=6, sampling=SAMPLING, options=FEW)
    others = [replace(task, sampling=None), replace(task, token_ids=(9, 9)), task]
    outcomes = tiny.engine.run([*others, task])
    assert outcomes[-1].token_ids[len(PROMPT) :] == drawn(tiny, SAMPLING)[0]
    before, same, changed = continuations(tiny, (NOTHING, MUCH), SAMPLING)
    assert before == same == drawn(tiny, SAMPLING)[0]
    assert continuations(tiny, (MUCH,), SAMPLING) == [before, changed]
    assert any(
        one != other for seed in range(3) for one, other in [continuations(tiny, (MUCH,), replace(SAMPLING, seed=seed))]
    )


def test_a_text_that_the_model_ends_is_told_apart(tiny: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    [first, second, *_], _ = drawn(tiny, SAMPLING)
    assert first != second
    ended = (first, second), Generation(FinishReason.STOP, 3)
    assert drawn(tiny, SAMPLING, stops=(second,)) == ended
    set_ = InterveneTask(token_ids=PROMPT, sets=(NOTHING,), generate=6, sampling=SAMPLING, stops=(second,))
    [outcome] = tiny.engine.run([set_])
    for state in (outcome.before, outcome.results[0].after):
        assert (tuple(token.id for token in state.continuation), state.generation) == ended
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", second)
    assert drawn(tiny, SAMPLING) == ended
