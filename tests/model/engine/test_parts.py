"""Every part of an explanation: float32 engine against float64 oracle, on tiny models with sizeable scores."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.requests import AttributeOptions, Direction, Intervention, Part, ScoringMethod
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask
from reference.compare import assert_close, assert_ties_by_index
from reference.compare_explanations import assert_explanation, assert_scores_absolutely
from reference.compare_neurons import assert_named, ranking_key
from reference.compared import Compared
from reference.tiny_models import TINY_MODELS

PROMPT = (45, 73, 93, 18, 59, 56)
OTHER = (90, 10, 90, 95, 1, 34, 54, 89, 19)
FIELDS = {
    Part.LAYERS: {"layers"},
    Part.HEADS: {"head_scores"},
    Part.HEAD_POSITIONS: {"heads", "heads_decreasing"},
    Part.FFN_VALUE_NEURONS: {"ffn_value_neurons", "ffn_value_neurons_decreasing"},
    Part.ATTENTION_VALUE_NEURONS: {"attention_value_neurons", "attention_value_neurons_decreasing"},
    Part.QUERY_LAYERS: {"ffn_query_layers", "attention_query_layers"},
    Part.QUERY_FFN_NEURONS: {"query_ffn_neurons", "query_ffn_neurons_decreasing"},
    Part.ATTENTION_PATTERNS: {"attention_patterns"},
}
MATRICES = {"head_scores", "attention_patterns"}
MORE_THAN_ALL = 100_000


@pytest.mark.parametrize("target", [None, 5, 57])
@pytest.mark.parametrize("prompt", [PROMPT, OTHER, (17,)], ids=["six tokens", "nine tokens", "one token"])
def test_every_part(tiny: Compared, prompt: tuple[int, ...], target: int | None) -> None:
    """To 1e-5: for these prompts no divisor of the query scores cancels."""
    got = tiny.check(prompt, target, allow_cancellation=False)
    assert_scores_absolutely(got, tiny.oracle(prompt).explain(target=target), AttributeOptions())


@pytest.mark.parametrize("target", [None, 5])
@pytest.mark.parametrize("direction", list(Direction))
def test_directions(tiny: Compared, direction: Direction, target: int | None) -> None:
    tiny.check(OTHER, target, options=AttributeOptions(direction=direction, top_k=25))


@pytest.mark.parametrize("direction", list(Direction))
def test_contrast(tiny: Compared, direction: Direction) -> None:
    tiny.check(PROMPT, 5, 60, AttributeOptions(direction=direction, top_k=25))


def test_a_token_behind_a_space_is_told_where_it_is_more_probable(tiny: Compared) -> None:
    plain = tiny.explain_last(PROMPT).predictions
    best, second = plain[0].token.id, plain[1].token.id
    for target, spaced, told in ((second, best, plain[0]), (best, second, None), (best, None, None)):
        token = ExplainedToken(len(PROMPT) - 1, target, spaced)
        [explanation] = tiny.explain(AttributeTask(token_ids=PROMPT, explained=(token,)))
        assert (explanation.target.token.id, explanation.spaced_target) == (target, told)


def test_contrast_with_the_final_norms_bias(tiny: Compared) -> None:
    options = AttributeOptions(direction=Direction.BOTH, include_final_norm_bias=True)
    tiny.check(PROMPT, 5, 60, options)


@pytest.mark.parametrize("direction", [Direction.INCREASE, Direction.DECREASE])
@pytest.mark.parametrize("method", list(ScoringMethod))
def test_scoring_methods(tiny: Compared, method: ScoringMethod, direction: Direction) -> None:
    options = AttributeOptions(scoring_method=method, direction=direction, top_k=25)
    got = tiny.check(PROMPT, 5, options=options)
    if method is ScoringMethod.RECIPROCAL_RANK and direction is Direction.INCREASE:
        want = tiny.oracle(PROMPT).explain(target=5)
        keys = [ranking_key(entry) for entry in got.ffn_value_neurons.neurons]
        assert_ties_by_index(keys, want.ffn_neuron_scores(method))
        keys = [ranking_key(entry) for entry in got.attention_value_neurons.neurons]
        assert_ties_by_index(keys, want.attention_neuron_scores(method))


def test_more_asked_for_than_there_is(tiny: Compared) -> None:
    options = AttributeOptions(
        top_k=MORE_THAN_ALL,
        head_top_k=MORE_THAN_ALL,
        projection_top_k=MORE_THAN_ALL,
        direction=Direction.BOTH,
        query_sources=MORE_THAN_ALL,
    )
    got = tiny.check(PROMPT[:3], 5, options=options)
    layers, heads, size = len(tiny.weights.layers), tiny.weights.heads, tiny.weights.head_size
    assert len(got.ffn_value_neurons.neurons) == layers * 48
    assert len(got.attention_value_neurons.neurons) == layers * heads * size * 3
    assert len(got.heads) == layers * heads


@pytest.mark.parametrize("top_k", [1, 2])
def test_few_asked_for(tiny: Compared, top_k: int) -> None:
    options = AttributeOptions(top_k=top_k, direction=Direction.BOTH, projection_top_k=0, query_sources=1)
    tiny.check(OTHER, options=options)


def test_exhaustive_ranking_is_the_bounded_one(tiny: Compared) -> None:
    options = AttributeOptions(top_k=20, direction=Direction.BOTH)
    bounded = tiny.check(OTHER, 5, options=options)
    exhaustive = AttributeOptions(top_k=20, direction=Direction.BOTH, exhaustive=True)
    brute_force = tiny.check(OTHER, 5, options=exhaustive)
    for name in ("ffn_value_neurons", "attention_value_neurons"):
        for suffix in ("", "_decreasing"):
            quick, slow = getattr(bounded, name + suffix), getattr(brute_force, name + suffix)
            assert [ranking_key(entry) for entry in quick.neurons] == [ranking_key(entry) for entry in slow.neurons]
            assert_close([e.score for e in quick.neurons], [e.score for e in slow.neurons], name)


def test_coverage_counts_every_neuron(tiny: Compared) -> None:
    got = tiny.explain_last(OTHER, 5)
    layers, heads, size = len(tiny.weights.layers), tiny.weights.heads, tiny.weights.head_size
    ffn, attention = got.ffn_value_neurons.coverage, got.attention_value_neurons.coverage
    assert ffn.neurons == layers * 48
    assert attention.neurons == layers * heads * size * len(OTHER)
    for coverage in (ffn, attention):
        assert coverage.exact
        assert 10 <= coverage.scored <= coverage.bounded <= coverage.neurons


def test_bounds_leave_most_neurons_unscored(tiny: Compared) -> None:
    got = tiny.explain_last(OTHER, 5, options=AttributeOptions(top_k=3))
    assert got.ffn_value_neurons.coverage.scored < got.ffn_value_neurons.coverage.neurons / 2
    assert got.attention_value_neurons.coverage.scored < got.attention_value_neurons.coverage.neurons / 2


def test_final_norm_bias_gives_the_models_own_log_probability(tiny: Compared) -> None:
    got = tiny.check(PROMPT, 5, options=AttributeOptions(include_final_norm_bias=True, direction=Direction.BOTH))
    with torch.no_grad():
        logits = tiny.model(torch.tensor([PROMPT])).logits[0, -1]
    assert_close(got.layers.final_log_probability, torch.log_softmax(logits, 0)[5], "final log probability")
    assert_close(got.target.log_probability, got.layers.final_log_probability, "target log probability")


def test_published_convention_leaves_the_final_norms_bias_out(tiny: Compared) -> None:
    got = tiny.explain_last(PROMPT, 5)
    difference = abs(got.layers.final_log_probability - got.target.log_probability)
    assert (difference > 0.01) == (tiny.name == "gpt2")


def test_positions_of_a_completion(tiny: Compared) -> None:
    """Each explained position sees only what comes before it, whatever follows."""
    explained = tuple(ExplainedToken(i - 1, OTHER[i]) for i in range(4, len(OTHER)))
    options = AttributeOptions(direction=Direction.BOTH, position_projection_top_k=5)
    got = tiny.explain(AttributeTask(token_ids=OTHER, explained=explained, options=options))
    assert [explanation.position for explanation in got] == [token.position for token in explained]
    oracle = tiny.oracle(OTHER)
    for explanation, token in zip(got, explained, strict=True):
        assert_explanation(explanation, oracle.explain(token.position, token.target), options)


def test_generated_tokens_are_explained(tiny: Compared) -> None:
    (outcome,) = tiny.engine.run([AttributeTask(token_ids=PROMPT, generate=3)])
    oracle = tiny.oracle(outcome.token_ids)
    assert outcome.token_ids[: len(PROMPT)] == PROMPT
    assert len(outcome.token_ids) == len(PROMPT) + 3
    assert [explanation.position for explanation in outcome.explanations] == [5, 6, 7]
    for explanation in outcome.explanations:
        token = outcome.token_ids[explanation.position + 1]
        assert token == oracle.top_token(explanation.position)
        assert_explanation(explanation, oracle.explain(explanation.position, token), AttributeOptions())


OVER_POSITIONS = AttributeOptions(direction=Direction.BOTH, top_k=25, attention_neurons_over_positions=True)


@pytest.mark.parametrize(("target", "contrast"), [(None, None), (5, None), (5, 60)])
def test_attention_neurons_over_positions(tiny: Compared, target: int | None, contrast: int | None) -> None:
    """One entry a neuron; what activates value neurons is still looked for position by position."""
    got = tiny.check(OTHER, target, contrast, OVER_POSITIONS)
    layers, heads, size = len(tiny.weights.layers), tiny.weights.heads, tiny.weights.head_size
    assert got.attention_value_neurons.coverage.neurons == layers * heads * size
    assert all(entry.position is None for entry in got.attention_value_neurons.neurons)
    assert all(entry.position is not None for entry in tiny.explain_last(OTHER).attention_value_neurons.neurons)


@pytest.mark.parametrize("method", list(ScoringMethod))
def test_attention_neurons_over_positions_by_every_method(tiny: Compared, method: ScoringMethod) -> None:
    tiny.check(OTHER, 5, options=replace(OVER_POSITIONS, scoring_method=method))


def test_attention_neurons_over_positions_exhaustively(tiny: Compared) -> None:
    got = tiny.check(OTHER, 5, options=replace(OVER_POSITIONS, exhaustive=True))
    bounded = tiny.explain_last(OTHER, 5, options=OVER_POSITIONS)
    assert bounded.attention_value_neurons.coverage.scored < got.attention_value_neurons.coverage.scored


def test_rows_with_and_without_positions_share_a_batch(tiny: Compared) -> None:
    tasks = [
        AttributeTask(token_ids=OTHER, explained=(ExplainedToken(len(OTHER) - 1, 5),), options=options)
        for options in (OVER_POSITIONS, replace(OVER_POSITIONS, attention_neurons_over_positions=False))
    ]
    for task, outcome in zip(tasks, tiny.engine.run(tasks), strict=True):
        assert_explanation(outcome.explanations[0], tiny.oracle(OTHER).explain(target=5), task.options)


@pytest.mark.parametrize("contrast", [None, 60])
def test_named_neurons(tiny: Compared, contrast: int | None) -> None:
    last = tiny.weights.head_size - 1
    neurons = (
        AttentionNeuron(2, 3, last),
        FfnNeuron(0, 0),
        FfnNeuron(2, 47),
        AttentionNeuron(0, 0, 0),
        FfnNeuron(0, 0),
        AttentionNeuron(1, 2, 3),
    )
    got = tiny.explain_last(PROMPT, 5, contrast=contrast, options=AttributeOptions(neurons=neurons))
    want = tiny.oracle(PROMPT).explain(target=5, contrast=contrast)
    assert len(got.neurons) == len(neurons)
    for entry, neuron in zip(got.neurons, neurons, strict=True):
        assert_named(entry, neuron, want, 10)


@pytest.mark.parametrize("part", list(Part))
def test_one_part_alone(tiny: Compared, part: Part) -> None:
    """It is what it is among all the parts, and nothing else is returned."""
    got = tiny.check(OTHER, 5, options=AttributeOptions(parts=frozenset({part})))
    for other, fields in FIELDS.items():
        present = any(getattr(got, name) not in (None, ()) for name in fields - MATRICES)
        present |= any(getattr(got, name) is not None for name in fields & MATRICES)
        assert present == (other is part), f"{other} when only {part} was asked for"


@pytest.mark.parametrize("top_k", [3, MORE_THAN_ALL])
def test_projections_at_the_positions_of_heads(tiny: Compared, top_k: int) -> None:
    options = AttributeOptions(
        position_projection_top_k=top_k, parts=frozenset({Part.HEAD_POSITIONS}), direction=Direction.BOTH, head_top_k=12
    )
    got = tiny.check(PROMPT, 5, options=options)
    assert all(head.positions for head in got.heads + got.heads_decreasing)


def test_neuron_writes_sum_to_the_models_own_layer_outputs(tiny: Compared) -> None:
    """The engine's coefficients times the subvalues, and the bias, are what the model's modules return."""
    got = tiny.explain_last(PROMPT, 5, options=AttributeOptions(top_k=MORE_THAN_ALL, projection_top_k=0))
    family = {"gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj")}
    outputs = family.get(tiny.name, ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"))
    for number, layer in enumerate(tiny.weights.layers):
        attention, ffn = (_last_output(tiny, name.format(number)) for name in outputs)
        written = layer.output_bias.clone()
        for entry in got.attention_value_neurons.neurons:
            if entry.neuron.layer == number:
                rows = tiny.weights.output_rows(number, entry.neuron.head)
                written += entry.coefficient * rows[entry.neuron.index]
        assert_close(written, attention, "attention write")
        written = layer.down_bias.clone()
        for entry in got.ffn_value_neurons.neurons:
            if entry.neuron.layer == number:
                written += entry.coefficient * layer.down[entry.neuron.index]
        assert_close(written, ffn, "FFN write")


def test_scores_are_finite_when_the_target_is_improbable(tiny: Compared) -> None:
    logits = tiny.oracle(PROMPT).states.logits[-1]
    got = tiny.check(PROMPT, int(logits.argmin()), options=AttributeOptions(direction=Direction.BOTH))
    assert math.isfinite(got.layers.embedding_log_probability)
    assert np.isfinite(got.head_scores).all()


def _last_output(tiny: Compared, name: str) -> np.ndarray:
    seen = []
    handle = tiny.model.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    try:
        with torch.no_grad():
            tiny.model(torch.tensor([PROMPT]))
    finally:
        handle.remove()
    return seen[0].reshape(len(PROMPT), -1)[-1].double().numpy()


@pytest.mark.parametrize("intervened", [False, True])
def test_a_prompt_that_overflows_is_refused_by_name_and_alone(intervened: bool) -> None:
    """Token 7 of this model is beyond all numbers."""
    model = copy.deepcopy(TINY_MODELS["llama"]())
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.inf
    engine = engine_from(model)
    sets = ((Intervention(neurons=(FfnNeuron(0, 0),)),),)

    def task(ids: tuple[int, ...]) -> AttributeTask | InterveneTask:
        if intervened:
            return InterveneTask(token_ids=ids, sets=sets)
        return AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1),))

    broken, whole = engine.run([task((3, 7, 5)), task((3, 4, 5))])
    assert isinstance(broken, FailedPreconditionError)
    assert broken.reason == "OVERFLOW"
    assert "--dtype float32" in broken.message
    assert not isinstance(whole, Exception)
