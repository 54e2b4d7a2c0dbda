"""Two predictions compared over a real port, against brute force in float64 of every neuron on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from examples import few
from neuron_attribution import AsyncClient, Client, InvalidArgumentError
from neuron_attribution.comparing import predictions
from neuron_attribution.comparing.head_effects import reruns_at_once
from neuron_attribution.comparisons import Comparison, DifferenceRanking, HeadEffects, NeuronComparison
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import Intervention, LayerPart, Scale
from neuron_attribution.results import AttributeResult
from reference.compare import assert_close, assert_projection, assert_ranking
from reference.compared import Compared, compare
from reference.edited import changed_logits, edited_copy
from reference.oracle import Explained, Oracle
from reference.projections import project_neuron
from reference.served import served, word_tokenizer
from reference.tiny_models import TINY_MODELS, VOCABULARY

PROMPT = (45, 73, 93, 18, 59, 56)
OTHER = (90, 10, 90, 95, 1, 34, 54, 89, 19)
TARGET, CONTRAST = 5, 60
MORE_THAN_ALL = 900
TOLERANCE = 1e-5
INTERVENTIONS = {
    "a head": (Intervention(heads=(Head(1, 2),)),),
    "neurons": (
        Intervention(Scale(-2.0), neurons=(FfnNeuron(0, 5), AttentionNeuron(1, 3, 1))),
        Intervention(layers=(LayerPart(1, "ffn"),)),
    ),
}
DIRECTIONS = {"fell": True, "rose": False}


def tiny_model(name: str = "llama", **seed: int) -> Compared:
    """A tiny model that can be served."""
    return compare(TINY_MODELS[name](**seed), name, word_tokenizer(VOCABULARY))


@pytest.fixture(params=few(TINY_MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> Compared:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def client(model: Compared) -> Iterator[Client]:
    with served(model) as client:
        yield client


@pytest.fixture(scope="module")
def llama() -> Compared:
    return tiny_model()


@pytest.mark.parametrize("contrast", [None, CONTRAST])
@pytest.mark.parametrize("target", [None, TARGET])
@pytest.mark.parametrize("top_k", [1, 10, MORE_THAN_ALL])
def test_every_difference(
    model: Compared, client: Client, top_k: int, target: int | None, contrast: int | None
) -> None:
    """All of the comparison is what the two explanations' brute force gives; at most every neuron is returned."""
    got = client.compare(PROMPT, OTHER, target=target, contrast=contrast, top_k=top_k)
    sides = tuple(model.oracle(ids).explain(target=target, contrast=contrast) for ids in (PROMPT, OTHER))
    assert_comparison(got, sides, top_k)
    for kind in (got.ffn_neurons, got.attention_neurons):
        assert kind.fell.exact
        assert kind.rose.exact


@pytest.mark.parametrize("at_once", [3, 1000])
def test_a_search_that_must_look_deeper(llama: Compared, at_once: int) -> None:
    """It starts with one neuron of each end; few neurons may be named in one request."""
    with served(llama, maximum_neurons=at_once) as client, patch.object(predictions, "FIRST_DEPTH", 1):
        got = client.compare(PROMPT, OTHER, target=TARGET, top_k=2)
    sides = tuple(llama.oracle(ids).explain(target=TARGET) for ids in (PROMPT, OTHER))
    assert_comparison(got, sides, 2)
    for kind in (got.ffn_neurons, got.attention_neurons):
        assert kind.depth >= 8
        assert kind.scored < kind.neurons
        assert kind.fell.exact
        assert kind.rose.exact


def test_where_the_servers_limit_ends_the_search_the_gap_is_told(llama: Compared) -> None:
    with served(llama, maximum_top_k=5) as client:
        got = client.compare(PROMPT, OTHER, target=TARGET, top_k=5, projection_top_k=0)
    sides = tuple(llama.oracle(ids).explain(target=TARGET) for ids in (PROMPT, OTHER))
    for kind, differences in kinds(got, sides):
        assert kind.depth == 5
        assert kind.scored <= 20
        assert_stopped(kind, differences)


def test_passes_that_disagree_are_not_called_exact(client: Client) -> None:
    """As on a device where the batch decides the last digits: what the layers' scores differ by is allowed for."""
    plain, shaken = (followed(client, distance) for distance in (0.0, 0.5))
    for before, after in ((plain.ffn_neurons, shaken.ffn_neurons), (plain.attention_neurons, shaken.attention_neurons)):
        assert before.scored < after.scored
        assert after.fell.bound == -np.inf or after.fell.bound > 0.5


def followed(client: Client, distance: float) -> Comparison:
    """A comparison that begins with one neuron of each end, the answers after the first ones moved."""
    with patch.object(predictions, "FIRST_DEPTH", 1):
        steps = predictions.compare(PROMPT, OTHER, one_server=True, top_k=2, projection_top_k=0)
        answers: Any = None
        number = 0
        try:
            while True:
                answers = [client._run(call, None) for _, call in steps.send(answers)]
                answers = [moved(answer, distance) for answer in answers] if number > 1 else answers
                number += 1
        except StopIteration as end:
            return end.value


def moved(answer: AttributeResult, distance: float) -> AttributeResult:
    """An answer whose layers were scored differently."""
    (explanation,) = answer.explanations
    layers = replace(explanation.layers, ffn=explanation.layers.ffn + np.float32(distance))
    return replace(answer, explanations=(replace(explanation, layers=layers),))


def test_one_prompt_on_two_servers(llama: Compared) -> None:
    """What another training would have changed."""
    other = tiny_model(seed=1)
    with served(llama) as client, served(other) as other_client:
        got = client.compare(PROMPT, other=other_client, target=TARGET, top_k=10)
    sides = (llama.oracle(PROMPT).explain(target=TARGET), other.oracle(PROMPT).explain(target=TARGET))
    assert_comparison(got, sides, 10)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_prompt_with_and_without_interventions(model: Compared, client: Client, name: str) -> None:
    """Against a copy whose weights are edited; both sides explain what the model says without them."""
    edited = Oracle(edited_copy(model.model, INTERVENTIONS[name]), PROMPT)
    plain = model.oracle(PROMPT).explain()
    got = client.compare(PROMPT, interventions=INTERVENTIONS[name], top_k=10, projection_top_k=0)
    assert_comparison(got, (plain, edited.explain(target=plain.target)), 10, both_sides=False)
    assert abs(got.heads).max() > 0.01


def test_the_second_side_may_be_read_with_the_scale_of_the_first(model: Compared, client: Client) -> None:
    """As the published notebook reads it; two prompts have no scale in common."""
    interventions = INTERVENTIONS["a head"]
    plain = model.oracle(PROMPT).explain()
    want = Oracle(edited_copy(model.model, interventions), PROMPT).explain(target=plain.target)
    want.unembedding.scale = plain.unembedding.scale
    options = {"interventions": interventions, "top_k": 10, "projection_top_k": 0}
    got = client.compare(PROMPT, freeze_scale=True, **options)
    assert_comparison(got, (plain, want), 10, both_sides=False)
    own = client.compare(PROMPT, **options)
    assert abs(got.second.layers.final_log_probability - own.second.layers.final_log_probability) > 1e-6
    with pytest.raises(InvalidArgumentError, match="freeze_scale: is for one prompt with and without interventions"):
        client.compare(PROMPT, OTHER, freeze_scale=True)


def test_what_an_intervention_does_to_another_prompt(model: Compared, client: Client) -> None:
    edited = Oracle(edited_copy(model.model, INTERVENTIONS["a head"]), OTHER)
    got = client.compare(PROMPT, OTHER, interventions=INTERVENTIONS["a head"], top_k=3, projection_top_k=0)
    assert_comparison(got, (model.oracle(PROMPT).explain(), edited.explain()), 3, both_sides=False)


@pytest.mark.parametrize("target", [None, TARGET])
@pytest.mark.parametrize("reruns", [1, 5, 32])
def test_every_head_zeroed_in_turn(llama: Compared, reruns: int, target: int | None) -> None:
    with served(llama, maximum_intervention_sets=reruns) as client:
        got = client.head_effects(PROMPT, target=target)
    assert_head_effects(got, llama, target)


def test_every_head_zeroed_in_turn_asynchronously(model: Compared, client: Client) -> None:
    async def effects() -> HeadEffects:
        async with AsyncClient(client._connection.address) as twin:
            return await twin.head_effects(PROMPT)

    assert_head_effects(asyncio.run(effects()), model, None)


def test_long_prompts_are_rerun_a_few_at_a_time(client: Client) -> None:
    limits = client.get_model().limits
    assert reruns_at_once(limits, 6) == limits.intervention_sets == 32
    assert reruns_at_once(limits, 200) == 9
    assert reruns_at_once(limits, 2048) == reruns_at_once(limits, 4096) == 1
    assert reruns_at_once(replace(limits, batch_tokens=100), 20) == 4
    assert reruns_at_once(replace(limits, neurons=3), 6) == 3


def assert_head_effects(got: HeadEffects, model: Compared, target: int | None) -> None:
    """A float64 copy whose projections' inputs are changed on their way."""
    clean = changed_logits(model.model, PROMPT, ()).softmax(0)
    target = int(clean.argmax()) if target is None else target
    assert (got.target.token.id, [token.id for token in got.tokens]) == (target, list(PROMPT))
    assert_close(got.target.probability, clean[target], "probability", TOLERANCE)
    assert got.changes.shape == got.kl_divergences.shape == (len(model.weights.layers), model.weights.heads)
    for layer, head in np.ndindex(got.changes.shape):
        after = changed_logits(model.model, PROMPT, (Intervention(heads=(Head(layer, head),)),)).softmax(0)
        divergence = (clean * (clean / after).log()).sum()
        assert_close(got.changes[layer, head], after[target] - clean[target], "change", TOLERANCE)
        assert_close(got.probabilities[layer, head], after[target], "probability", TOLERANCE)
        assert_close(got.log_probabilities[layer, head], after[target].log(), "log probability", TOLERANCE)
        assert_close(got.kl_divergences[layer, head], divergence, "divergence", TOLERANCE)
    assert abs(got.changes).max() > 1e-3


def test_the_asynchronous_client_finds_the_same(model: Compared, client: Client) -> None:
    async def compared() -> Comparison:
        async with AsyncClient(client._connection.address) as twin:
            return await twin.compare(PROMPT, OTHER, top_k=3)

    sides = tuple(model.oracle(ids).explain() for ids in (PROMPT, OTHER))
    assert_comparison(asyncio.run(compared()), sides, 3)


def test_models_of_other_sizes_are_refused(llama: Compared) -> None:
    with (
        served(llama) as client,
        served(tiny_model("llama-with-biases")) as other,
        pytest.raises(InvalidArgumentError, match="other: its model has another size: head_size 12 instead of 8"),
    ):
        client.compare(PROMPT, other=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"other_prompt": None}, "other_prompt: nothing differs"),
        ({"other_prompt": PROMPT}, "other_prompt: nothing differs"),
        ({"top_k": 0}, "top_k: is 0; give at least 1"),
        ({"top_k": 1001}, "top_k: 1001 is over the limit 1000"),
        ({"top_k": 1.5}, "top_k: 1.5 is not a whole number"),
        ({"target": VOCABULARY}, "target.id: token 97 does not exist"),
        ({"target": 5, "contrast": 5}, "contrast: token 5 is the target itself"),
        ({"projection_top_k": 1001}, "projection_top_k: 1001 is over the limit 1000"),
        ({"other_prompt": ()}, "prompt.token_ids: "),
    ],
)
def test_wrong_arguments_are_refused_by_field(
    model: Compared, client: Client, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        client.compare(PROMPT, **{"other_prompt": OTHER, **arguments})


def kinds(got: Comparison, sides: tuple[Explained, Explained]) -> list[tuple[NeuronComparison, dict[Any, float]]]:
    """Each kind's result, and the difference of every neuron of that kind."""
    first, second = sides
    every = [
        (got.ffn_neurons, first.ffn_neuron_scores(), second.ffn_neuron_scores()),
        (got.attention_neurons, first.whole_attention_neuron_scores(), second.whole_attention_neuron_scores()),
    ]
    return [(kind, {key: one[key] - two[key] for key in one}) for kind, one, two in every]


def assert_comparison(
    got: Comparison, sides: tuple[Explained, Explained], top_k: int, *, both_sides: bool = True
) -> None:
    """Both directions of both kinds, what both sides say of each neuron, and layers and heads."""
    for kind, differences in kinds(got, sides):
        assert kind.neurons == len(differences)
        for name, increasing in DIRECTIONS.items():
            ranking = getattr(kind, name)
            keys = [neuron_key(item.neuron) for item in ranking.neurons]
            found = [item.difference for item in ranking.neurons]
            assert_ranking(keys, found, differences, top_k, increasing=increasing, tolerance=2 * TOLERANCE)
            if both_sides:
                assert_both_sides(ranking, sides)
    for side, want in zip((got.first, got.second), sides, strict=True):
        assert (side.target.token.id, side.tokens[0].id) == (want.target, want.oracle.token_ids[0])
        assert (side.contrast and side.contrast.token.id) == want.contrast
    first, second = (want.layer_scores() for want in sides)
    assert_close(got.attention_layers, first.attention - second.attention, "attention layers", 2 * TOLERANCE)
    assert_close(got.ffn_layers, first.ffn - second.ffn, "FFN layers", 2 * TOLERANCE)
    assert_close(got.heads, sides[0].head_scores() - sides[1].head_scores(), "heads", 2 * TOLERANCE)


def assert_both_sides(ranking: DifferenceRanking, sides: tuple[Explained, Explained]) -> None:
    for item in ranking.neurons[:10]:
        for got, want in zip((item.first, item.second), sides, strict=True):
            key = neuron_key(item.neuron)
            ffn = isinstance(item.neuron, FfnNeuron)
            score = want.ffn_layer_scores(key[0])[key] if ffn else want.whole_attention_neuron_score(*key)
            coefficient = want.ffn_coefficient(*key) if ffn else want.attention_coefficient(*key)
            assert_close(got.score, score, f"score of {item.neuron}", TOLERANCE)
            assert_close(got.coefficient, coefficient, f"coefficient of {item.neuron}", TOLERANCE)
            assert_projection(got.projection, project_neuron(want.weights, item.neuron), 10)
            assert got.promoted == (got.projection.top if coefficient > 0 else got.projection.bottom)


def assert_stopped(kind: NeuronComparison, differences: dict[Any, float]) -> None:
    """What is told of the missing neurons holds, and is not more than needed by much."""
    for name, increasing in DIRECTIONS.items():
        ranking, sign = getattr(kind, name), 1 if increasing else -1
        assert not ranking.exact
        least = sign * ranking.neurons[-1].difference
        assert ranking.gap == pytest.approx(ranking.bound - least)
        assert 0 < ranking.gap < np.ptp(list(differences.values()))
        listed = {neuron_key(item.neuron) for item in ranking.neurons}
        for key, difference in differences.items():
            assert key in listed or sign * difference <= least + ranking.gap


def neuron_key(neuron: Any) -> tuple[int, ...]:
    """(layer, index), or (layer, head, index)."""
    if isinstance(neuron, FfnNeuron):
        return neuron.layer, neuron.index
    return neuron.layer, neuron.head, neuron.index
