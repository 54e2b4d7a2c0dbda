"""Measured effects against hooks on the models themselves and against Intervene; and the gradient of the log odds."""

from __future__ import annotations

import pytest
import torch
from examples import few
from neuron_attribution.requests import Intervention, Zero
from neuron_attribution.traces import Graph, TraceNode, TraceNodeKind, TraceOptions
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import ExplainedRows
from neuron_attribution_server.model.capture.edits import Edits, Placed
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.tracing.support import why_untraceable
from neuron_attribution_server.tasks import tasks
from neuron_attribution_server.tasks.tasks import ExplainedToken, InterveneTask, TraceTask
from reference.compared import Compared
from reference.in_double import doubled, in_double
from reference.tiny_families import TINY_FAMILIES
from reference.tracing import engine_of
from torch import Tensor, nn
from transformers import PreTrainedModel

PROMPT = (3, 14, 15, 92, 65, 35)
LAST = len(PROMPT) - 1
TARGET, CONTRAST = 11, 60
DOWN = {"llama": "model.layers.{}.mlp.down_proj", "gpt2": "transformer.h.{}.mlp.c_proj"}

families = pytest.mark.parametrize("name", few(TINY_FAMILIES, 8))


@pytest.mark.parametrize("contrast", [None, CONTRAST])
@pytest.mark.parametrize("explained", [(LAST,), (2, 4, LAST)])
def test_effects_are_what_zeroing_does(tiny: Compared, contrast: int | None, explained: tuple[int, ...]) -> None:
    """Of neurons at every position, by hooks on the model; and gradients by a small step there."""
    graph = trace(tiny.engine, explained, contrast, nodes=40)
    before = log_odds(tiny.model, explained, contrast)
    assert graph.log_odds == pytest.approx(before, abs=1e-5)
    assert {node.position for node in neurons(graph)} >= {0, LAST}
    for node in neurons(graph):
        with changed(tiny.model, node, 0.0):
            after = log_odds(tiny.model, explained, contrast)
        assert node.effect == pytest.approx(before - after, abs=1e-5)
    model = doubled(tiny.model)
    for node in neurons(graph)[:5]:
        ends = []
        for factor in (0.999, 1.001):
            with changed(model, node, factor), in_double():
                ends.append(log_odds(model, explained, contrast))
        assert node.gradient == pytest.approx((ends[1] - ends[0]) / 0.002, abs=1e-5, rel=1e-4)
        assert node.activation == pytest.approx(activation(tiny.model, node), abs=1e-5)
    effects = [abs(node.effect) for node in neurons(graph)]
    assert effects == sorted(effects, reverse=True)


def test_neurons_of_a_long_prompt_are_zeroed_one_by_one(tiny: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the effects that they have together."""
    together = neurons(trace(tiny.engine, (LAST,), None, nodes=9))
    monkeypatch.setattr(tasks, "RERUN_TOKENS", len(PROMPT))
    alone = neurons(trace(tiny.engine, (LAST,), None, nodes=9))
    assert [node.effect for node in alone] == pytest.approx([node.effect for node in together], abs=1e-5)


@families
def test_effects_are_what_intervene_answers(name: str) -> None:
    """At the explained position, the only one at which Intervene can be told to zero a neuron, in every family."""
    engine = engine_of(name)
    if why_untraceable(engine._view) is not None:
        pytest.skip("refused by name")
    graph = trace(engine, (LAST,), None, nodes=60)
    there = [node for node in neurons(graph) if node.position == LAST][:6]
    assert len(there) > 2
    sets = tuple(
        (Intervention(neurons=(node.neuron,), operation=Zero(), explained_position_only=True),) for node in there
    )
    (outcome,) = engine.run([InterveneTask(token_ids=PROMPT, sets=sets, target=TARGET)])
    before = odds(outcome.before.target.log_probability)
    for node, result in zip(there, outcome.results, strict=True):
        after = odds(result.after.target.log_probability)
        assert node.effect == pytest.approx(before - after, abs=2e-5 * max(1, abs(before)))


@families
def test_reruns_from_recorded_states_are_reruns(name: str) -> None:
    """At earlier positions: the same effect as where every layer runs."""
    engine = engine_of(name)
    if why_untraceable(engine._view) is not None:
        pytest.skip("refused by name")
    graph = trace(engine, (LAST,), None, nodes=60)
    for node in [node for node in neurons(graph) if node.position < LAST][:4]:
        assert node.effect == pytest.approx(rerun(engine, node, graph.log_odds), abs=2e-5)


def rerun(engine: Engine, node: TraceNode, before: float) -> float:
    """The effect where one sequence alone runs from the first layer on, its neuron zeroed by an edit."""
    zero = Intervention(neurons=(node.neuron,), operation=Zero(), explained_position_only=True)
    rows = ExplainedRows.from_counts([[LAST]], torch.device("cpu"))
    with torch.inference_mode():
        captured = capture(engine._view, [PROMPT], rows, Edits(engine._view, [Placed((zero,), (node.position,))]))
        final = captured.inputs[-1][0, LAST].float()
        logits = engine._unembedding.own_logits(final[None])[0]
    return before - odds(torch.log_softmax(logits.double(), 0)[TARGET].item())


def trace(engine: Engine, explained: tuple[int, ...], contrast: int | None, nodes: int) -> Graph:
    tokens = tuple(ExplainedToken(position, TARGET) for position in explained)
    task = TraceTask(
        token_ids=PROMPT, explained=tokens, contrast=contrast, options=TraceOptions(nodes=nodes, screened=nodes)
    )
    (outcome,) = engine.run([task])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.graph


def neurons(graph: Graph) -> list[TraceNode]:
    return [node for node in graph.nodes if node.kind is TraceNodeKind.FFN_NEURON]


def odds(log_probability: float) -> float:
    """Log odds of a log probability."""
    return float(log_probability - torch.log1p(-torch.tensor(log_probability, dtype=torch.float64).exp()))


def log_odds(model: PreTrainedModel, explained: tuple[int, ...], contrast: int | None) -> float:
    """By the model itself, summed."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0].double()
    if contrast is not None:
        return sum((logits[t, TARGET] - logits[t, contrast]).item() for t in explained)
    return sum(odds(torch.log_softmax(logits[t], 0)[TARGET].item()) for t in explained)


class changed:
    """A neuron of a Llama or GPT-2 model times a factor at its position, by a hook."""

    def __init__(self, model: PreTrainedModel, node: TraceNode, factor: float) -> None:
        self._module, self._node, self._factor = down(model, node), node, factor

    def __enter__(self) -> None:
        def hook(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            edited = args[0].clone()
            edited[0, self._node.position, self._node.neuron.index] *= self._factor
            return (edited,)

        self._handle = self._module.register_forward_pre_hook(hook)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def activation(model: PreTrainedModel, node: TraceNode) -> float:
    """What the model itself passes on."""
    seen: list[Tensor] = []
    handle = down(model, node).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        log_odds(model, (LAST,), None)
    finally:
        handle.remove()
    return seen[0][0, node.position, node.neuron.index].item()


def down(model: PreTrainedModel, node: TraceNode) -> nn.Module:
    return model.get_submodule(DOWN[model.config.model_type].format(node.neuron.layer))
