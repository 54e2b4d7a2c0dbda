"""Models whose residual stream is not only added to, or whose layers differ: what only they can get wrong."""

from __future__ import annotations

import copy
import dataclasses
from types import MethodType

import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, QuerySource
from neuron_attribution.requests import AttributeOptions, Direction, Intervention, Scale, SetTo, Zero
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, ProjectTask
from reference.compared import Compared, compare_dissected
from reference.tiny_families import tiny_family
from torch import Tensor, nn

PROMPT = (45, 73, 93, 18, 59, 56, 90, 10)
TARGET = 5
OPERATIONS = {"zero": Zero(), "scale": Scale(-1.5), "set": SetTo(1.25)}


@pytest.fixture(scope="module")
def gemma4() -> Compared:
    """Layers 0 and 2 have heads of 16, layer 1 heads of 8; layer 2 mixes the values of layer 0."""
    return compare_dissected(tiny_family("gemma4_text"), "gemma4_text")


def test_values_of_another_layer_than_the_model_mixes_are_refused(monkeypatch) -> None:
    model = tiny_family("gemma4_text")
    model.config.same_types = ["any"] * 3
    wrong = dataclasses.replace(FAMILIES["gemma4_text"], value_sharing="same_types")
    monkeypatch.setitem(FAMILIES, "gemma4_text", wrong)
    with pytest.raises(FailedPreconditionError, match="value_keys is off by"):
        engine_from(model)


@pytest.mark.parametrize(("family", "wrong"), [("gemma4_text", "value_sharing"), ("llama4_text", "experts_router")])
def test_a_layer_without_what_the_architecture_says_is_refused(monkeypatch, family: str, wrong: str) -> None:
    monkeypatch.setitem(FAMILIES, family, dataclasses.replace(FAMILIES[family], **{wrong: None}))
    with pytest.raises(FailedPreconditionError, match="its modules are not where") as refused:
        engine_from(tiny_family(family))
    assert refused.value.reason == "UNSUPPORTED_ARCHITECTURE"


def test_neurons_of_smaller_heads_are_counted_once(gemma4: Compared) -> None:
    """All of them, by brute force and without; the places that they leave among larger ones are no neurons."""
    for exhaustive in (False, True):
        options = AttributeOptions(
            top_k=10_000, direction=Direction.BOTH, query_sources=4, exhaustive=exhaustive, projection_top_k=0
        )
        got = gemma4.check(PROMPT, TARGET, options=options)
        neurons = [entry.neuron for entry in got.attention_value_neurons.neurons]
        assert len(neurons) == got.attention_value_neurons.coverage.neurons == 4 * (16 + 8 + 16) * len(PROMPT)
        assert {each.index for each in neurons if each.layer == 1} == set(range(8))


def test_neurons_that_smaller_heads_do_not_have_are_refused_alone(gemma4: Compared) -> None:
    there, absent = AttentionNeuron(0, 3, 15), AttentionNeuron(1, 0, 8)
    explained = (ExplainedToken(len(PROMPT) - 1, TARGET),)
    queries = AttributeOptions(query_from=(QuerySource(absent),))
    *refused, answered = gemma4.engine.run(
        [
            ProjectTask(neurons=(there, absent)),
            InterveneTask(token_ids=PROMPT, sets=((Intervention(neurons=(absent,)),),)),
            AttributeTask(token_ids=PROMPT, explained=explained, options=queries),
            ProjectTask(neurons=(there,)),
        ]
    )
    for error in refused:
        assert "layer 1 has neurons 0 to 7 in each head" in error.message
    assert len(answered.projections) == 1


@pytest.mark.parametrize("head", [Head(0, 1), Head(1, 1), Head(2, 1)])
@pytest.mark.parametrize("only", [False, True])
def test_heads_are_intervened_in_where_they_are_while_text_is_generated(
    gemma4: Compared, head: Head, only: bool
) -> None:
    """Layers that mix others' values see the last position of the prompt alone then."""
    model = copy.deepcopy(tiny_family("gemma4_text"))
    interventions = (Intervention(Scale(-4.0), heads=(head,), explained_position_only=only),)
    (outcome,) = gemma4.engine.run([InterveneTask(token_ids=PROMPT, sets=(interventions,), target=TARGET, generate=4)])
    output = model.model.layers[head.layer].self_attn.o_proj
    size = output.in_features // 4

    def change(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        changed = args[0].clone()
        rows = slice(len(PROMPT) - 1, len(PROMPT)) if only else slice(None)
        changed[:, rows, head.head * size : (head.head + 1) * size] *= -4.0
        return (changed,)

    output.register_forward_pre_hook(change)
    text = list(PROMPT)
    with torch.no_grad():
        for step in range(4):
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            if step == 0:
                wanted = torch.log_softmax(logits, 0)[TARGET].item()
            text.append(int(logits.argmax()))
    after = outcome.results[0].after
    assert after.target.log_probability == pytest.approx(wanted, abs=2e-5)
    assert abs(wanted - outcome.before.target.log_probability) > 1e-3
    assert [token.id for token in after.continuation] == text[len(PROMPT) :]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_neurons_of_experts_that_are_weighed_first(operation: str) -> None:
    """Their coefficients are changed in what each expert's down projection takes in, chosen or not."""
    model = tiny_family("llama4_text")
    neurons = tuple(FfnNeuron(1, index, expert) for expert in range(4) for index in (0, 3))
    interventions = (Intervention(OPERATIONS[operation], neurons=neurons),)
    other = AttributeTask(token_ids=(1, 2, 3), explained=(ExplainedToken(2),))
    task = InterveneTask(token_ids=PROMPT, sets=(interventions,), target=TARGET)
    _, outcome = engine_from(model).run([other, task])
    edited = copy.deepcopy(model).double()
    edited.set_attn_implementation("eager")

    def forward(module: nn.Module, states: Tensor) -> Tensor:
        gate, up = (states.view(4, -1, states.shape[1]) @ module.gate_up_proj).chunk(2, -1)
        coefficients = nn.functional.silu(gate) * up
        for index in (0, 3):
            coefficients[:, :, index] = {
                "zero": torch.zeros_like(coefficients[:, :, index]),
                "scale": -1.5 * coefficients[:, :, index],
                "set": torch.full_like(coefficients[:, :, index], 1.25),
            }[operation]
        return (coefficients @ module.down_proj).view(states.shape)

    experts = edited.model.layers[1].feed_forward.experts
    experts.forward = MethodType(forward, experts)
    with torch.no_grad():
        logits = edited(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    wanted = torch.log_softmax(logits, 0)[TARGET].item()
    assert outcome.results[0].after.target.log_probability == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - outcome.before.target.log_probability) > 1e-3
