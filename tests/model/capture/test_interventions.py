"""Interventions change activations as editing the weights of a copy would, and nothing else of the batch."""

from __future__ import annotations

import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import (
    AttributeOptions,
    Direction,
    Intervention,
    LayerPart,
    LayerPartKind,
    Scale,
    SetTo,
    Zero,
)
from neuron_attribution_server.model.capture.edits import Edits, Placed
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask
from reference.compare_answers import assert_same
from reference.compared import Compared, compare_tiny
from reference.edited import changed_logits, edited_copy
from reference.oracle import Oracle
from reference.tiny_models import VOCABULARY
from reference.unembedding import FrozenUnembedding
from torch import Tensor

PROMPT = (45, 73, 93, 18, 59, 56)
LONGER = (90, 10, 90, 95, 1, 34, 54, 89, 19, 3, 3, 7, 8, 60, 61, 62, 80)
TARGET = 5
OPERATIONS = {"zero": Zero(), "scale": Scale(-1.5), "set": SetTo(0.75)}
NAMED = {
    "ffn neurons": {"neurons": (FfnNeuron(1, 5), FfnNeuron(1, 47), FfnNeuron(0, 0))},
    "attention neurons": {"neurons": (AttentionNeuron(2, 3, 1), AttentionNeuron(0, 0, 7))},
    "heads": {"heads": (Head(1, 2), Head(0, 3))},
    "attention of a layer": {"layers": (LayerPart(1, "attention"),)},
    "ffn of a layer": {"layers": (LayerPart(2, LayerPartKind.FFN),)},
    "all kinds": {
        "neurons": (FfnNeuron(1, 5), AttentionNeuron(1, 2, 0)),
        "heads": (Head(1, 2),),
        "layers": (LayerPart(0, "ffn"),),
    },
}
PLAIN = AttributeTask(
    token_ids=LONGER,
    explained=(ExplainedToken(len(LONGER) - 1, TARGET), ExplainedToken(4)),
    options=AttributeOptions(direction=Direction.BOTH, query_sources=8),
)
SHORT = AttributeTask(token_ids=(17, 4), explained=(ExplainedToken(1),))


def intervene(compared: Compared, *sets: tuple[Intervention, ...], beside: tuple[object, ...] = (), **facts: object):
    """The engine's answer; in a batch with others where there are any."""
    task = InterveneTask(**{"token_ids": PROMPT, "sets": sets, "target": TARGET} | facts)
    outcome = compared.engine.run([*beside, task, *beside])[len(beside)]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def assert_state(got, logits: Tensor) -> None:
    """Target and most probable tokens, as the logits have them."""
    wanted = torch.log_softmax(logits.double(), 0)
    for prediction in (got.target, *got.predictions):
        value = wanted[prediction.token.id]
        assert prediction.log_probability == pytest.approx(value.item(), abs=1e-5)
        assert prediction.probability == pytest.approx(value.exp().item(), abs=1e-5)
        assert (wanted > value + 1e-5).sum() < prediction.rank <= (wanted > value - 1e-5).sum() + 1
    assert [prediction.token.id for prediction in got.predictions] == wanted.topk(10).indices.tolist()


def own_logits(model, token_ids=PROMPT) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("named", NAMED)
def test_agrees_with_a_copy_that_is_changed(tiny: Compared, named: str, operation: str, only: bool) -> None:
    """Every operation on everything that can be named, beside other callers' prompts, shorter and longer."""
    intervention = Intervention(OPERATIONS[operation], **NAMED[named], explained_position_only=only)
    outcome = intervene(tiny, (intervention,), beside=(PLAIN, SHORT))
    before, after = own_logits(tiny.model), changed_logits(tiny.model, PROMPT, [intervention])
    assert_state(outcome.before, before)
    assert_state(outcome.results[0].after, after)
    p, q = (torch.log_softmax(logits.double(), 0) for logits in (before, after))
    assert outcome.results[0].kl_divergence == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-5)
    if not only and operation != "set":
        assert_state(outcome.results[0].after, own_logits(edited_copy(tiny.model, [intervention])))


@pytest.mark.parametrize("operation", ["zero", "scale"])
def test_what_comes_after_may_be_read_with_the_scale_of_before(tiny: Compared, operation: str) -> None:
    intervention = Intervention(OPERATIONS[operation], neurons=(FfnNeuron(1, 5), FfnNeuron(2, 3)))
    own, frozen = (intervene(tiny, (intervention,), freeze_scale=freeze) for freeze in (False, True))
    assert frozen.before == own.before
    before, after = tiny.oracle(PROMPT), Oracle(edited_copy(tiny.model, [intervention]), PROMPT)
    read = FrozenUnembedding(tiny.weights, before.states.final[-1], include_bias=True)
    assert_state(frozen.results[0].after, read.log_probabilities(read.bs(after.states.final[-1])))
    assert frozen.results[0].after != own.results[0].after


def test_it_changes_something(tiny: Compared) -> None:
    """Else the comparisons above would say little."""
    outcome = intervene(tiny, *[(Intervention(heads=(Head(layer, 0),)),) for layer in range(3)])
    assert min(result.kl_divergence for result in outcome.results) > 1e-4


def test_the_interventions_of_a_set_are_made_together_and_in_order(tiny: Compared) -> None:
    neuron = {"neurons": (FfnNeuron(1, 5),)}
    together = (Intervention(Scale(3.0), **neuron), Intervention(SetTo(0.5), heads=(Head(0, 1),)))
    outcome = intervene(tiny, together, (*together, Intervention(Zero(), **neuron)), (together[1],))
    assert_state(outcome.results[0].after, changed_logits(tiny.model, PROMPT, together))
    zeroed = (Intervention(**neuron), together[1])
    assert_state(outcome.results[1].after, changed_logits(tiny.model, PROMPT, zeroed))
    assert_state(outcome.results[2].after, changed_logits(tiny.model, PROMPT, together[1:]))


def test_scaling_by_one_changes_no_bit(tiny: Compared) -> None:
    outcome = intervene(tiny, (Intervention(Scale(1.0), layers=(LayerPart(0, "ffn"), LayerPart(1, "attention"))),))
    assert outcome.results[0].after == outcome.before
    assert outcome.results[0].kl_divergence == 0


def test_others_of_the_batch_do_not_notice(tiny: Compared) -> None:
    """To the last bit what they are beside plain sequences, wherever those stand; the model is the same after it."""
    everything = Intervention(SetTo(2.0), layers=tuple(LayerPart(n, k) for n in range(3) for k in LayerPartKind))
    task = InterveneTask(token_ids=PROMPT, sets=((everything,),) * 3, generate=2)
    plain = [AttributeTask(token_ids=PROMPT)] * task.sequences
    for others in ([PLAIN], [SHORT], [PLAIN, SHORT]):
        for place in range(len(others) + 1):
            before, after = others[:place], others[place:]
            without = tiny.engine.run([*before, *plain, *after])
            outcomes = tiny.engine.run([*before, task, *after])
            again = tiny.engine.run([*before, *plain, *after])
            for found in ([*outcomes[:place], *outcomes[place + 1 :]], [*again[:place], *again[place + len(plain) :]]):
                for got, other in zip(found, [*without[:place], *without[place + len(plain) :]], strict=True):
                    assert_all_same(got.explanations, other.explanations)


def assert_all_same(explanations, others) -> None:
    for got, other in zip(explanations, others, strict=True):
        assert_same(got, other, tolerance=0.0)


def test_a_sets_answer_depends_on_nothing_else(tiny: Compared) -> None:
    """Alone, with other sets, with other callers: the same to the last bit, continuations too."""
    one, other = (Intervention(heads=(Head(0, 1),)),), (Intervention(SetTo(3.0), layers=(LayerPart(1, "ffn"),)),)
    alone = intervene(tiny, one, generate=6)
    for outcome in (
        intervene(tiny, one, other, generate=6),
        intervene(tiny, one, *[other] * 20, generate=6),
        intervene(tiny, one, beside=(PLAIN, SHORT), generate=6),
    ):
        assert outcome.before == alone.before
        assert outcome.results[0] == alone.results[0]


def test_continuations_are_those_of_the_edited_copy(tiny: Compared) -> None:
    sets = [
        (Intervention(heads=(Head(0, 1), Head(1, 1)), neurons=(FfnNeuron(0, 3),)),),
        (Intervention(Scale(-2.0), layers=(LayerPart(1, "attention"),)),),
        (Intervention(Scale(0.25), layers=(LayerPart(2, "ffn"),)),),
    ]
    outcome = intervene(tiny, *sets, generate=8)
    texts = [
        [token.id for token in state.continuation] for state in (outcome.before, *[r.after for r in outcome.results])
    ]
    models = [tiny.model, *[edited_copy(tiny.model, each) for each in sets]]
    prompt = torch.tensor([PROMPT])
    wanted = [m.generate(prompt, max_new_tokens=8, do_sample=False)[0, len(PROMPT) :].tolist() for m in models]
    assert texts == wanted
    assert len({tuple(text) for text in texts}) > 1


def test_the_explained_position_alone_is_left_behind_by_generation(tiny: Compared) -> None:
    """The first generated token sees the change; those after it see only what it left in the past."""
    intervention = Intervention(SetTo(4.0), layers=(LayerPart(1, "ffn"),), explained_position_only=True)
    outcome = intervene(tiny, (intervention,), generate=3)
    tokens, wanted = list(PROMPT), []
    for _ in range(3):
        at_last = len(PROMPT) - 1 - len(tokens)
        logits = _changed_at(tiny, tokens, intervention, at_last)
        wanted.append(int(logits.argmax()))
        tokens.append(wanted[-1])
    assert [token.id for token in outcome.results[0].after.continuation] == wanted


def _changed_at(tiny: Compared, tokens: list[int], intervention: Intervention, position: int) -> Tensor:
    from reference.edited import output_of

    def hook(_module, args):
        changed = args[0].clone()
        changed[0, position] = intervention.operation.value
        return (changed,)

    handle = output_of(tiny.model, 1, LayerPartKind.FFN).register_forward_pre_hook(hook)
    try:
        return own_logits(tiny.model, tokens)
    finally:
        handle.remove()


def test_without_a_target_the_models_own_token_is_watched(tiny: Compared) -> None:
    outcome = intervene(tiny, (Intervention(layers=(LayerPart(2, "ffn"),)),), target=None)
    assert outcome.before.target.token.id == int(own_logits(tiny.model).argmax())
    assert outcome.before.target.rank == 1
    assert outcome.results[0].after.target.token == outcome.before.target.token


@pytest.mark.parametrize("value", [3e38, 1e25])
def test_what_overflows_is_refused_alone(tiny: Compared, value: float) -> None:
    """The values themselves, or only their squares, of which a norm would make nothing but zeros."""
    huge = Intervention(SetTo(value), layers=(LayerPart(0, "ffn"),))
    task = InterveneTask(token_ids=PROMPT, sets=((Intervention(heads=(Head(0, 0),)),), (huge,)))
    attribution = AttributeTask(
        token_ids=PROMPT, explained=(ExplainedToken(5),), options=AttributeOptions(interventions=(huge,))
    )
    refused, answered, refused_too = tiny.engine.run([task, PLAIN, attribution])
    assert (refused.reason, refused.violations[0].field) == ("OVERFLOW", "sets[1]")
    assert (refused_too.reason, refused_too.violations[0].field) == ("OVERFLOW", "interventions")
    assert_same(answered.explanations[0], tiny.explain(PLAIN)[0])


@settings(max_examples=examples(25), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_interventions_in_any_batch(data: st.DataObject) -> None:
    compared = compare_tiny(data.draw(st.sampled_from(["llama", "gpt2"])))
    ffn = st.builds(FfnNeuron, st.integers(0, 2), st.integers(0, 47))
    attention = st.builds(AttentionNeuron, st.integers(0, 2), st.integers(0, 3), st.integers(0, 7))
    intervention = st.builds(
        Intervention,
        st.just(Zero()) | st.floats(-3, 3).map(Scale) | st.floats(-2, 2).map(SetTo),
        st.lists(ffn | attention, max_size=3).map(tuple),
        st.lists(st.builds(Head, st.integers(0, 2), st.integers(0, 3)), max_size=2).map(tuple),
        st.lists(st.builds(LayerPart, st.integers(0, 2), st.sampled_from(LayerPartKind)), min_size=1, max_size=1).map(
            tuple
        ),
        st.booleans(),
    )
    sets = data.draw(st.lists(st.lists(intervention, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
    prompt = tuple(data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)))
    outcome = intervene(compared, *sets, token_ids=prompt, beside=(SHORT,))
    for result, each in zip(outcome.results, sets, strict=True):
        wanted = torch.log_softmax(changed_logits(compared.model, prompt, each), 0)[TARGET]
        assert result.after.target.log_probability == pytest.approx(wanted.item(), abs=1e-4)
        assert result.kl_divergence >= 0


def test_whole_layers_of_all_sets_share_the_numbers_of_their_neurons(tiny: Compared) -> None:
    """In every layer and sequence, and in the parts of it that single experts see."""
    whole = Placed((Intervention(layers=tuple(LayerPart(layer, "ffn") for layer in range(3))),))
    edits = Edits(tiny.engine._view, [whole] * 4)
    every = [edit for part in edits._edits.values() for edit in part]
    pieces = [piece for edit in every for piece in (edit.among(8, 40), edit.among(8, 40).among(4, 10))]
    assert len(every) == 12
    assert len({each.numbers.untyped_storage().data_ptr() for each in (*every, *pieces)}) == 1
    assert pieces[1].units.tolist() == list(range(10))
    assert every[0].among(48, 10) is None


def test_a_neuron_the_layer_does_not_have_is_named(tiny: Compared) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        intervene(
            tiny, (Intervention(heads=(Head(0, 0),)),), (Intervention(neurons=(FfnNeuron(1, 0), FfnNeuron(1, 48))),)
        )
    assert caught.value.violations[0].field == "sets[1].interventions[0].neurons[1]"
