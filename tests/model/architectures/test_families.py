"""Every supported family on a tiny random model: proven at load, and every part of its answers against brute force.

The oracle takes each model apart by how it behaves, without the specs that the server goes by.
"""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import few
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import (
    Aggregate,
    AttributeOptions,
    Direction,
    Intervention,
    Scale,
    ScoringMethod,
    Side,
    Subkey,
)
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.feed_forward import LayerFfn
from neuron_attribution_server.model.architectures.projections import weight_of
from neuron_attribution_server.model.capture.capture import set_plain, set_recordable
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import (
    SUMMED_PARTS,
    AttributeTask,
    ExplainedToken,
    InterveneTask,
    ProjectTask,
)
from reference.compare import assert_no_gate, assert_projection
from reference.compare_answers import assert_same
from reference.compare_explanations import assert_explanation
from reference.compare_neurons import assert_named
from reference.compare_sums import assert_sums
from reference.compared import Compared, compare_dissected
from reference.experts import EXPERT
from reference.projections import project_neuron, project_through
from reference.tiny_families import TINY_FAMILIES, tiny_family
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

PROMPT = (45, 73, 93, 18, 59, 56)
LONGER = (90, 10, 90, 95, 1, 34, 54, 89, 19)
TARGET, CONTRAST = 5, 60
SOURCES = 8
"""Few enough that neurons which a ReLU leaves at zero are not among them."""
ANSWERED = 3
OPTIONS = AttributeOptions(direction=Direction.BOTH, query_sources=SOURCES)
CAPPED = ("gemma2", "vaultgemma", "nanochat", "recurrent_gemma", "gemma4_text")
LEFT_PADDING_IS_SEEN = ("granitemoehybrid, biased", "recurrent_gemma", "minimax_m3_vl_text")
"""Recurrent mixers read it, blocks of positions are cut elsewhere by it; the server never pads on the left."""

families = pytest.mark.parametrize("name", few(TINY_FAMILIES, 8))


@functools.cache
def dissected(name: str) -> Compared:
    """A family's tiny model in the engine and in the oracle."""
    return compare_dissected(tiny_family(name), name)


def test_every_supported_family_is_tested() -> None:
    assert {family for family, _ in TINY_FAMILIES.values()} == set(FAMILIES)
    assert len(FAMILIES) >= 35


@families
def test_invariants_hold_with_room(name: str) -> None:
    for invariant in dissected(name).engine.facts.invariants:
        assert 0 <= invariant.error < invariant.tolerance / 10, invariant.name


@families
def test_every_part(name: str) -> None:
    """To 1e-5, both ends of every ranking; and scores that are worth comparing."""
    got = dissected(name).check(PROMPT, TARGET, options=OPTIONS)
    assert max(abs(got.layers.attention).max(), abs(got.layers.ffn).max()) > 0.1
    assert min(got.ffn_value_neurons.neurons[0].score, got.attention_value_neurons.neurons[0].score) > 0.01


@families
def test_contrast_with_every_bias(name: str) -> None:
    options = AttributeOptions(direction=Direction.BOTH, query_sources=SOURCES, include_final_norm_bias=True)
    dissected(name).check(LONGER, TARGET, CONTRAST, options)


@families
def test_a_whole_answer(name: str) -> None:
    """What the last tokens of a text do together: their sums by the oracle, empty where a layer has no heads."""
    compared, first = dissected(name), len(LONGER) - ANSWERED
    explained = tuple(ExplainedToken(place - 1, LONGER[place]) for place in range(first, len(LONGER)))
    options = replace(OPTIONS, parts=SUMMED_PARTS, aggregate=Aggregate.SUM, aggregate_only=True)
    (outcome,) = compared.engine.run([AttributeTask(token_ids=LONGER, explained=explained, options=options)])
    oracle = compared.oracle(LONGER)
    assert_sums(outcome.aggregate, [oracle.explain(token.position, token.target) for token in explained], options)


@families
def test_final_norm_bias_gives_the_models_own_log_probability(name: str) -> None:
    compared = dissected(name)
    got = compared.explain_last(PROMPT, TARGET, options=AttributeOptions(include_final_norm_bias=True))
    with torch.no_grad():
        logits = compared.model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    assert got.layers.final_log_probability == pytest.approx(torch.log_softmax(logits, 0)[TARGET].item(), abs=1e-5)


@families
def test_batch_and_padding_change_nothing(name: str) -> None:
    """Alone, in a batch of other lengths before or after it, and in the batch of one that a longer sequence pads."""
    compared = dissected(name)
    tasks = [
        AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1, TARGET),), options=OPTIONS)
        for ids in (PROMPT, LONGER * 2, (17, 4), LONGER)
    ]
    alone = [compared.explain(task)[0] for task in tasks]
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        for place, outcome in zip(order, compared.engine.run([tasks[place] for place in order]), strict=True):
            assert_same(outcome.explanations[0], alone[place])


@families
def test_generated_tokens_are_the_most_probable_ones(name: str) -> None:
    """Step by step with a cache, as by plain attention over the whole text again and again.

    The vocabulary is read by random vectors: tied ones only repeat the last token. What else a checkpoint wants of
    its text is left alone.
    """
    model = copy.deepcopy(tiny_family(name))
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
    for wish in ({"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}, {"num_return_sequences": 2}):
        vars(model.generation_config).update(wish)
    engine = engine_from(model)
    (outcome,) = engine.run([AttributeTask(token_ids=LONGER, generate=8)])
    set_plain(engine._view)
    expected = list(LONGER)
    with torch.no_grad():
        for _ in outcome.explanations:
            logits = model(input_ids=torch.tensor([expected]), use_cache=False).logits[0, -1]
            expected.append(int(logits.argmax()))
    assert outcome.token_ids == tuple(expected)
    assert len(outcome.explanations) == 8
    assert [each.target.rank for each in outcome.explanations] == [1] * 8
    assert len(set(expected[len(LONGER) :])) > 2, "a text that only repeats itself shows nothing"


@families
def test_attention_implementation_changes_nothing(name: str) -> None:
    """What is recorded beside fused attention is what the oracle finds in transformers' plain attention."""
    compared = dissected(name)
    got = compared.explain_last(LONGER, TARGET)
    with torch.no_grad():
        fused = compared.model(input_ids=torch.tensor([LONGER]), use_cache=False).logits[0, -1]
        set_plain(compared.engine._view)
        try:
            plain = compared.model(input_ids=torch.tensor([LONGER]), use_cache=False).logits[0, -1]
        finally:
            set_recordable(compared.engine._view)
    assert torch.allclose(fused, plain, atol=1e-5 * float(plain.abs().max()))
    assert got.target.log_probability == pytest.approx(torch.log_softmax(plain, 0)[TARGET].item(), abs=1e-5)


@pytest.mark.parametrize("name", few([name for name in TINY_FAMILIES if name not in LEFT_PADDING_IS_SEEN], 8))
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    """The model's own answer to a prompt padded on the left, where the family numbers positions by its mask."""
    compared = dissected(name)
    padded, mask = (0, 0, 0, *PROMPT), (0, 0, 0, *(1,) * len(PROMPT))
    positions = torch.tensor([mask]).cumsum(1).sub(1).clamp_min(0)
    inputs = {"input_ids": torch.tensor([padded]), "attention_mask": torch.tensor([mask])}
    if "position_ids" in inspect.signature(compared.model.forward).parameters:
        inputs["position_ids"] = positions
    set_plain(compared.engine._view)
    try:
        with torch.no_grad():
            logits = compared.model(**inputs, use_cache=False).logits[0, -1]
    finally:
        set_recordable(compared.engine._view)
    got = compared.explain_last(PROMPT, TARGET)
    assert got.target.log_probability == pytest.approx(torch.log_softmax(logits, 0)[TARGET].item(), abs=1e-4)


@families
def test_neurons_projected(name: str) -> None:
    """Subvalues, every subkey there is, and FFN neurons through a head."""
    compared = dissected(name)
    first, *_, last = with_heads(compared) * 2
    neurons = (*some_ffn_neurons(compared), AttentionNeuron(first, 0, 0), AttentionNeuron(last, 3, 7))
    for side, subkey in ((Side.SUBVALUE, Subkey.UP), (Side.SUBKEY, Subkey.UP), (Side.SUBKEY, Subkey.GATE)):
        task = ProjectTask(neurons=neurons, side=side, subkey=subkey)
        if subkey is Subkey.GATE and any(layer.gate is None for layer in compared.weights.layers):
            assert_no_gate(compared.engine.run([task])[0])
            continue
        for got in compared.engine.run([task])[0].projections:
            assert_projection(got.projection, project_neuron(compared.weights, got.neuron, side, subkey), 10)
    head = Head(last, 2)
    (outcome,) = compared.engine.run([ProjectTask(neurons=neurons[:-2], through=head)])
    for got in outcome.projections:
        assert_projection(got.projection, project_through(compared.weights, got.neuron, head), 10)


@families
def test_named_neurons_and_positions(name: str) -> None:
    compared = dissected(name)
    neurons = (*some_ffn_neurons(compared), AttentionNeuron(with_heads(compared)[-1], 3, 7))
    options = AttributeOptions(
        neurons=neurons,
        query_sources=SOURCES,
        position_projection_top_k=3,
        direction=Direction.BOTH,
        attention_neurons_over_positions=True,
    )
    explained = tuple(ExplainedToken(position, TARGET) for position in (3, 7))
    got = compared.explain(AttributeTask(token_ids=LONGER, explained=explained, options=options))
    oracle = compared.oracle(LONGER)
    for explanation in got:
        want = oracle.explain(explanation.position, TARGET)
        assert_explanation(explanation, want, options)
        for entry, neuron in zip(explanation.neurons, neurons, strict=True):
            assert_named(entry, neuron, want, 10)


@pytest.mark.parametrize("method", list(ScoringMethod))
@pytest.mark.parametrize(
    "name", ["gemma3_text", "granite", "gpt_oss", "deepseek_v3", "gemma2", "falcon", "gemma4_text"]
)
def test_scoring_methods(name: str, method: ScoringMethod) -> None:
    options = AttributeOptions(scoring_method=method, direction=Direction.BOTH, top_k=15, query_sources=SOURCES)
    dissected(name).check(PROMPT, TARGET, options=options)


@pytest.mark.parametrize(
    "name", ["qwen2_moe", "glm4_moe", "gpt_oss", "gemma3_text", "llama4_text", "gemma4_text, experts"]
)
def test_every_neuron_is_counted_once(name: str) -> None:
    """Also where layers have different widths, and by brute force."""
    compared = dissected(name)
    total = sum(len(layer.down) for layer in compared.weights.layers)
    for exhaustive in (False, True):
        options = AttributeOptions(
            top_k=10_000, direction=Direction.BOTH, query_sources=SOURCES, exhaustive=exhaustive, projection_top_k=0
        )
        got = compared.check(PROMPT, TARGET, options=options)
        assert len({entry.neuron for entry in got.ffn_value_neurons.neurons}) == total
        assert len(got.query_ffn_neurons.neurons) == got.ffn_value_neurons.coverage.neurons == total


@pytest.mark.parametrize("name", CAPPED)
@pytest.mark.parametrize("contrast", [None, CONTRAST])
def test_soft_caps_claim_no_guarantee_and_are_right(name: str, contrast: int | None) -> None:
    """Screened: right, with most neurons unscored, and not called exact. Exhaustive: exact."""
    compared = dissected(name)
    assert not compared.engine.facts.exactness.exact
    assert "soft-cap" in compared.engine.facts.exactness.explanation
    screened = AttributeOptions(top_k=3, direction=Direction.BOTH, query_sources=3)
    got = compared.check(PROMPT, TARGET, contrast, screened)
    coverage = got.ffn_value_neurons.coverage
    assert not coverage.exact
    assert coverage.scored < coverage.neurons
    exhaustive = AttributeOptions(top_k=3, direction=Direction.BOTH, query_sources=3, exhaustive=True)
    assert compared.check(PROMPT, TARGET, contrast, exhaustive).ffn_value_neurons.coverage.exact


def test_rotary_angles_that_depend_on_the_length_are_each_sequences_own() -> None:
    """LongRoPE turns by other angles from nine tokens on: neither a longer neighbour nor padding may cross that."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 8}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 8.0}
    facts = TINY_FAMILIES["phi3"][1] | {"rope_parameters": rope, "original_max_position_embeddings": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **facts), dtype=torch.float32).eval()
    model.load_state_dict(tiny_family("phi3").state_dict())
    engine = engine_from(model)
    tasks = [AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1, 5),)) for ids in (PROMPT, LONGER)]
    with torch.no_grad():
        own = [model(input_ids=torch.tensor([t.token_ids]), use_cache=False).logits[0, -1] for t in tasks]
    for order in ([0, 1], [1, 0], [0]):
        for place, outcome in zip(order, engine.run([tasks[place] for place in order]), strict=True):
            expected = torch.log_softmax(own[place], 0)[5].item()
            assert outcome.explanations[0].target.log_probability == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        padded = model(input_ids=torch.tensor([(*PROMPT, 0, 0, 0)]), use_cache=False).logits[0, len(PROMPT) - 1]
    assert abs(torch.log_softmax(padded, 0)[5] - torch.log_softmax(own[0], 0)[5]) > 1e-3


def test_other_families_claim_it() -> None:
    for name in few(TINY_FAMILIES, 8):
        assert dissected(name).engine.facts.exactness.exact == (name not in CAPPED)


def test_experts_that_are_not_chosen_have_no_coefficient() -> None:
    compared = dissected("mixtral")
    got = compared.explain_last(PROMPT, TARGET, options=AttributeOptions(top_k=10_000, projection_top_k=0))
    by_expert = np.zeros((2, 4))
    for entry in got.ffn_value_neurons.neurons:
        by_expert[entry.neuron.layer, entry.neuron.expert] += abs(entry.coefficient)
    assert ((by_expert > 0).sum(1) == 2).all()


@pytest.mark.parametrize("neuron", [FfnNeuron(0, 20, 0), FfnNeuron(1, 24, 0), FfnNeuron(1, 20), FfnNeuron(1, 0, 4)])
def test_a_neuron_the_layer_does_not_have_is_refused_alone(neuron: FfnNeuron) -> None:
    """Layer 0 of this model is dense with 40 neurons; layer 1 has four experts of 24 and a shared one of 20."""
    engine = dissected("qwen2_moe").engine
    good = ProjectTask(neurons=(FfnNeuron(0, 39), FfnNeuron(1, 19), FfnNeuron(1, 23, 3)))
    refused, answered = engine.run([ProjectTask(neurons=(neuron,)), good])
    assert str(neuron) in str(refused)
    assert len(answered.projections) == 3


def with_heads(compared: Compared) -> list[int]:
    """The layers that have heads."""
    return [number for number, layer in enumerate(compared.weights.layers) if len(layer.output)]


def some_ffn_neurons(compared: Compared) -> tuple[FfnNeuron, ...]:
    """The first and the last of each layer, an expert's where there are experts."""
    layers = [(number, layer) for number, layer in enumerate(compared.weights.layers) if len(layer.down)]
    names = [(number, name) for number, layer in layers for name in all_names(layer)]
    return tuple(
        FfnNeuron(layer, name) if name < EXPERT else FfnNeuron(layer, name % EXPERT, name // EXPERT - 1)
        for layer, name in names
    )


def all_names(layer: object) -> tuple[int, ...]:
    """The names of the first and the last row."""
    return layer.name(0), layer.name(len(layer.down) - 1)


@families
def test_interventions_agree_with_an_edited_copy(name: str) -> None:
    """An FFN neuron of the layer's last network zeroed, an attention neuron doubled: the weights of a copy say what."""
    compared = dissected(name)
    ffn, attention = some_ffn_neurons(compared)[-1], AttentionNeuron(with_heads(compared)[0], 3, 5)
    sets = ((Intervention(neurons=(ffn,)),), (Intervention(Scale(2.0), neurons=(attention,)),))
    task = InterveneTask(token_ids=PROMPT, sets=sets, target=TARGET)
    other = AttributeTask(token_ids=LONGER, explained=(ExplainedToken(3),))
    outcome = compared.engine.run([other, task])[1]
    view = compared.engine._view
    attending = view.layers[attention.layer]
    columns = ffn_columns(view.layers[ffn.layer].ffn, ffn), weight_of(attending.attention_output)
    unit = attention.head * attending.sizes.head_size + attention.index
    for result, column, factor in zip(outcome.results, (columns[0], columns[1][:, unit]), (0, 2), strict=True):
        wanted = torch.log_softmax(logits_with(compared.model, column, factor), 0)[TARGET].item()
        assert result.after.target.log_probability == pytest.approx(wanted, abs=2e-5)
    assert outcome.results[1].after.target.log_probability != outcome.before.target.log_probability


def logits_with(model: PreTrainedModel, weights: torch.Tensor, factor: float) -> torch.Tensor:
    """The model's own logits after the prompt while some of its weights are multiplied."""
    kept = weights.clone()
    with torch.no_grad():
        weights *= factor
        try:
            return model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
        finally:
            weights.copy_(kept)


def ffn_columns(ffn: LayerFfn, neuron: FfnNeuron) -> torch.Tensor:
    """The weights that what an FFN neuron writes is made of; changing them changes the model."""
    if neuron.expert is None:
        return weight_of(ffn.dense.output)[:, neuron.index]
    return ffn.experts.block(neuron.expert)[neuron.index]
