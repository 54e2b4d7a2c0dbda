"""Layers that mix positions without attention weights: what they have, what they lack, and what may be asked."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from examples import few
from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, QuerySource
from neuron_attribution.requests import AttributeOptions, Direction, Intervention, LayerPart, Part, Scale
from neuron_attribution.results import LayerParts, Mixer
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.attribution.checkpoints import at_checkpoints
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.model.process.calibration import measured_work
from neuron_attribution_server.tasks.running import do_nothing
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, ProjectTask
from reference.compare_answers import assert_same
from reference.tiny_families import TINY_FAMILIES, tiny_family
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT = (45, 73, 93, 18, 59, 56)
TARGET = 5
EXPLAINED = (ExplainedToken(len(PROMPT) - 1, TARGET),)
BOTH = AttributeOptions(direction=Direction.BOTH, query_sources=8)
RECURRENT = [name for name, (family, _) in TINY_FAMILIES.items() if FAMILIES[family].recurrence is not None]
NO_HEADS = "layer 0 has no heads: it mixes positions by a state space; layers with heads are 2"


@functools.cache
def engine(name: str) -> Engine:
    """A tiny model in the engine. The layers of nemotron_h are a state space, experts, attention, a dense network."""
    return engine_from(tiny_family(name))


def test_what_each_layer_is_made_of_is_told() -> None:
    convolution, state_space = ((Mixer.SHORT_CONVOLUTION,), (Mixer.STATE_SPACE,))
    attention = (Mixer.ATTENTION,)
    assert engine("lfm2").facts.layers == (
        LayerParts(convolution, 0, 40),
        LayerParts(attention, 4, 40),
        LayerParts(convolution, 0, 40),
    )
    assert engine("nemotron_h").facts.layers == (
        LayerParts(state_space, 0, 0),
        LayerParts((), 0, 20, 4),
        LayerParts(attention, 4, 0),
        LayerParts((), 0, 40),
    )
    assert engine("falcon_h1").facts.layers == (LayerParts((*attention, *state_space), 4, 40),) * 2
    assert engine("llama").facts.layers == (LayerParts(attention, 4, 40),) * 2


def test_layers_without_heads_have_no_scores_of_any() -> None:
    parts = frozenset(Part)
    task = AttributeTask(token_ids=PROMPT, explained=EXPLAINED, options=AttributeOptions(parts=parts, head_top_k=99))
    (explanation,) = engine("nemotron_h").run([task])[0].explanations
    for numbers in (explanation.head_scores, explanation.attention_patterns):
        assert [bool(np.isnan(layer).all()) for layer in numbers] == [True, True, False, True]
        assert np.isfinite(numbers[2]).all()
    assert {head.head for head in explanation.heads} == {Head(2, head) for head in range(4)}
    assert {entry.neuron.layer for entry in explanation.attention_value_neurons.neurons} == {2}
    assert explanation.attention_value_neurons.coverage.neurons == 4 * 8 * len(PROMPT)
    assert explanation.layers.attention[[0, 2]].all()
    assert not explanation.layers.attention[[1, 3]].any()
    assert not explanation.layers.ffn[[0, 2]].any()


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (AttributeTask(token_ids=PROMPT, options=AttributeOptions(neurons=(AttentionNeuron(0, 0, 0),))), "neurons[0]"),
        (
            AttributeTask(
                token_ids=PROMPT, options=AttributeOptions(query_from=(QuerySource(AttentionNeuron(0, 1, 2)),))
            ),
            "query_from[0].neuron",
        ),
        (ProjectTask(neurons=(AttentionNeuron(0, 0, 0),)), "neurons[0]"),
        (ProjectTask(neurons=(FfnNeuron(3, 0),), through=Head(0, 1)), "through"),
        (
            InterveneTask(token_ids=PROMPT, sets=((Intervention(heads=(Head(0, 1),)),),)),
            "sets[0].interventions[0].heads[0]",
        ),
        (
            InterveneTask(token_ids=PROMPT, sets=((Intervention(neurons=(AttentionNeuron(0, 1, 1),)),),)),
            "sets[0].interventions[0].neurons[0]",
        ),
    ],
)
def test_heads_that_a_layer_does_not_have_are_refused_by_name(task: object, field: str) -> None:
    (refused,) = engine("nemotron_h").run([task])
    assert isinstance(refused, InvalidArgumentError)
    assert (refused.reason, refused.violations[0].field) == ("OUT_OF_RANGE", field)
    assert NO_HEADS in str(refused)


@pytest.mark.parametrize(
    ("layer", "kind", "lacks"), [(0, "ffn", "feed-forward network"), (1, "attention", "attention")]
)
def test_parts_that_a_layer_does_not_have_are_refused_by_name(layer: int, kind: str, lacks: str) -> None:
    intervention = Intervention(layers=(LayerPart(layer, kind),))
    (refused,) = engine("nemotron_h").run([InterveneTask(token_ids=PROMPT, sets=((intervention,),))])
    assert isinstance(refused, InvalidArgumentError)
    assert f"layer {layer} has no {lacks}" in str(refused)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_layers_mixers_are_changed_as_a_whole(name: str) -> None:
    """As in a copy with the weights of what they go out by changed: what is generated, and what is attributed."""
    factor = -0.5
    intervention = Intervention(Scale(factor), layers=(LayerPart(0, "attention"),))
    edited = copy.deepcopy(tiny_family(name))
    layer = engine_from(edited)._view.layers[0]
    with torch.no_grad():
        for module, _ in layer.attention_write_modules:
            module.weight *= factor
    other = engine_from(edited)
    asked = InterveneTask(token_ids=PROMPT, sets=((intervention,),), target=TARGET, generate=4)
    plain = InterveneTask(token_ids=PROMPT, sets=((),), target=TARGET, generate=4)
    got, want = engine(name).run([asked])[0], other.run([plain])[0]
    assert got.results[0].after.continuation == want.before.continuation
    assert got.results[0].after.target.log_probability == pytest.approx(want.before.target.log_probability, abs=2e-5)
    assert abs(got.results[0].after.target.log_probability - got.before.target.log_probability) > 1e-3
    changed = AttributeOptions(direction=Direction.BOTH, query_sources=8, interventions=(intervention,))
    tasks = [AttributeTask(token_ids=PROMPT, explained=EXPLAINED, options=each) for each in (changed, BOTH)]
    mine, theirs = engine(name).run(tasks[:1])[0], other.run(tasks[1:])[0]
    assert_same(mine.explanations[0], theirs.explanations[0])


@pytest.fixture(scope="module")
def state_keeper() -> Engine:
    """A model whose modules keep their states themselves. Untied, for a tied one says one token for ever."""
    settings = TINY_FAMILIES["recurrent_gemma"][1] | {"tie_word_embeddings": False}
    torch.manual_seed(0)
    return engine_from(AutoModelForCausalLM.from_config(AutoConfig.for_model("recurrent_gemma", **settings)).eval())


def generated(engine: Engine, *prompts: tuple[int, ...]) -> list[list[int]]:
    outcomes = engine.run([AttributeTask(token_ids=prompt, generate=8) for prompt in prompts])
    return [[each.target.token.id for each in outcome.explanations] for outcome in outcomes]


@pytest.mark.parametrize("prompt", few([PROMPT[:1], PROMPT, (4, 8, 15, 16, 23, 42)]))
def test_what_other_requests_leave_in_modules_is_not_found(state_keeper, prompt) -> None:
    """Requests that ran between two tokens, and one that generated before."""
    alone = generated(state_keeper, prompt)[0]

    def other() -> None:
        with at_checkpoints(do_nothing):
            generated(state_keeper, (7, 8, 9, 10))

    with at_checkpoints(other):
        assert generated(state_keeper, prompt)[0] == alone
    assert generated(state_keeper, (7, 8, 9, 10), prompt)[1] == alone


@pytest.mark.parametrize("name", ["jamba", "olmo_hybrid"])
def test_a_reproducible_answer_does_not_depend_on_its_batch(name: str) -> None:
    """To the last bit, though these mixers round otherwise in a longer batch."""
    own = AttributeTask(token_ids=PROMPT * 3, explained=(ExplainedToken(17, TARGET),), options=BOTH, reproducible=True)
    other = AttributeTask(token_ids=PROMPT * 6, explained=(ExplainedToken(35, TARGET),))
    (alone,), (_, beside, _) = engine(name).run([own]), engine(name).run([other, own, other])
    mine, theirs = alone.explanations[0], beside.explanations[0]
    for one, another in (
        (mine.layers.attention, theirs.layers.attention),
        (mine.layers.ffn, theirs.layers.ffn),
        (mine.head_scores, theirs.head_scores),
    ):
        np.testing.assert_array_equal(one, another)
    assert mine.ffn_value_neurons == theirs.ffn_value_neurons


def test_experts_that_write_to_a_smaller_space_are_refused_by_name() -> None:
    family, facts = TINY_FAMILIES["nemotron_h"]
    config = AutoConfig.for_model(family, **facts, moe_latent_size=16)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(FailedPreconditionError, match="experts do not write to the residual stream"):
        engine_from(model)


@pytest.mark.parametrize("name", ["nemotron_h", "bamba"])
def test_work_is_priced_by_neurons_that_there_are(name: str) -> None:
    """Also where other layers have no feed-forward network: no sample is refused."""
    served, found = engine(name), []

    class Watched:
        facts = served.facts

        def run(self, tasks: list[object]) -> list[object]:
            found.extend(served.run(tasks))
            return found[-len(tasks) :]

    measured_work(Watched())
    assert len(found) > 3
    assert not [outcome for outcome in found if isinstance(outcome, Exception)]
