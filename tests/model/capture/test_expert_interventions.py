"""Neurons of routed experts: against experts that a copy computes one token and one neuron at a time, in float64."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import AttributeOptions, Intervention, LayerPart, Scale, SetTo, Zero
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, ProjectTask
from reference.tiny_families import tiny_family
from torch import Tensor, nn

PROMPT = (45, 73, 93, 18, 59, 56, 90, 10)
TARGET = 5
OPERATIONS = {"zero": Zero(), "scale": Scale(-1.5), "set": SetTo(1.25)}


@pytest.fixture(scope="module")
def mixtral():
    return tiny_family("mixtral")


@pytest.fixture(scope="module")
def engine(mixtral):
    return engine_from(mixtral)


def changed_logits(model: nn.Module, interventions: tuple[Intervention, ...], layer: int) -> Tensor:
    double = copy.deepcopy(model).double()
    double.set_attn_implementation("eager")
    experts = double.model.layers[layer].mlp.experts

    def forward(module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        count, width = len(module.down_proj), module.down_proj.shape[2]
        coefficients = hidden.new_zeros(len(hidden), count, width)
        for token, (experts_of, shares) in enumerate(zip(chosen.tolist(), weights, strict=True)):
            for expert, share in zip(experts_of, shares, strict=True):
                gate, up = (module.gate_up_proj[expert] @ hidden[token]).chunk(2)
                coefficients[token, expert] = torch.nn.functional.silu(gate) * up * share
        for intervention in interventions:
            rows = [-1] if intervention.explained_position_only else range(len(hidden))
            cells = {(neuron.expert, neuron.index) for neuron in intervention.neurons}
            cells |= {(e, n) for _ in intervention.layers for e in range(count) for n in range(width)}
            for row in rows:
                for cell in cells:
                    coefficients[row][cell] = new(intervention.operation, coefficients[row][cell])
        return torch.einsum("ten,edn->td", coefficients, module.down_proj)

    experts.forward = MethodType(forward, experts)
    with torch.no_grad():
        return double(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]


def new(operation, value: Tensor) -> Tensor | float:
    match operation:
        case Scale(factor):
            return value * factor
        case SetTo(number):
            return number
    return 0.0


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("named", ["neurons", "layers"])
def test_agrees_with_experts_computed_one_by_one(mixtral, engine, named: str, operation: str, only: bool) -> None:
    """A value is set where the expert is not chosen, too; in a batch with a plain prompt."""
    neurons = tuple(FfnNeuron(0, index, expert) for expert in range(4) for index in (0, 3))
    facts = {"neurons": neurons} if named == "neurons" else {"layers": (LayerPart(0, "ffn"),)}
    interventions = (Intervention(OPERATIONS[operation], **facts, explained_position_only=only),)
    plain = AttributeTask(token_ids=(1, 2, 3), explained=(ExplainedToken(2),))
    task = InterveneTask(token_ids=PROMPT, sets=(interventions,), target=TARGET)
    before, outcome, after = engine.run([plain, task, plain])
    wanted = torch.log_softmax(changed_logits(mixtral, interventions, 0), 0)[TARGET].item()
    assert outcome.results[0].after.target.log_probability == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - outcome.before.target.log_probability) > 1e-3
    for one, other in zip(before.explanations[0].predictions, after.explanations[0].predictions, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-6)


def test_several_changes_of_one_neuron_follow_one_another(mixtral, engine) -> None:
    neurons = {"neurons": tuple(FfnNeuron(1, 2, expert) for expert in range(4))}
    interventions = (Intervention(SetTo(0.5), **neurons), Intervention(Scale(4.0), **neurons))
    (outcome,) = engine.run([InterveneTask(token_ids=PROMPT, sets=(interventions,), target=TARGET)])
    wanted = torch.log_softmax(changed_logits(mixtral, interventions, 1), 0)[TARGET].item()
    assert outcome.results[0].after.target.log_probability == pytest.approx(wanted, abs=1e-5)


def test_continuations_are_generated_with_them(mixtral, engine) -> None:
    """One expert's whole output column zeroed in a copy."""
    neurons = tuple(FfnNeuron(1, index, 2) for index in range(mixtral.model.layers[1].mlp.experts.down_proj.shape[2]))
    (outcome,) = engine.run([InterveneTask(token_ids=PROMPT, sets=((Intervention(neurons=neurons),),), generate=6)])
    edited = copy.deepcopy(mixtral)
    edited.model.layers[1].mlp.experts.down_proj.data[2] = 0
    prompt = torch.tensor([PROMPT])
    for state, model in ((outcome.before, mixtral), (outcome.results[0].after, edited)):
        wanted = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, len(PROMPT) :].tolist()
        assert [token.id for token in state.continuation] == wanted


def test_a_shared_experts_value_is_set_whatever_its_share() -> None:
    """Of qwen2_moe: a sigmoid weighs what the shared expert writes, and the coefficient contains it."""
    model = tiny_family("qwen2_moe")
    engine, neuron = engine_from(model), FfnNeuron(1, 7)
    options = AttributeOptions(interventions=(Intervention(SetTo(1.5), neurons=(neuron,)),), neurons=(neuron,))
    explained = (ExplainedToken(3, TARGET), ExplainedToken(len(PROMPT) - 1, TARGET))
    (outcome,) = engine.run([AttributeTask(token_ids=PROMPT, explained=explained, options=options)])
    for explanation in outcome.explanations:
        assert explanation.neurons[0].coefficient == pytest.approx(1.5, abs=1e-5)
        assert abs(explanation.layers.remainder) < 1e-4
    column = model.model.layers[1].mlp.shared_expert.down_proj.weight[:, 7].detach()
    (task,) = engine.run(
        [
            InterveneTask(
                token_ids=PROMPT, sets=(options.interventions, (Intervention(neurons=(neuron,)),)), target=TARGET
            )
        ]
    )
    with torch.no_grad():
        kept = column.clone()
        column.zero_()
        handle = model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, output: output + 1.5 * kept)
        wanted = torch.log_softmax(model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1], 0)
        handle.remove()
        zeroed = torch.log_softmax(model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1], 0)
    found = [result.after.target.log_probability for result in task.results]
    assert found == pytest.approx([wanted[TARGET].item(), zeroed[TARGET].item()], abs=2e-5)


def test_projections_and_interventions_know_which_experts_there_are(engine) -> None:
    absent = FfnNeuron(0, 0, 4)
    refused, also_refused, without_expert = engine.run(
        [
            ProjectTask(neurons=(absent,)),
            InterveneTask(token_ids=PROMPT, sets=((Intervention(neurons=(FfnNeuron(0, 0, 3), absent)),),)),
            InterveneTask(token_ids=PROMPT, sets=((Intervention(neurons=(FfnNeuron(0, 0),)),),)),
        ]
    )
    for error in (refused, also_refused, without_expert):
        assert "experts 0 to 3" in error.message
    assert also_refused.violations[0].field == "sets[0].interventions[0].neurons[1]"
