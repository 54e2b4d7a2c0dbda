"""The oracle against the models themselves: real hooks and real interventions, nothing of the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from examples import few
from reference.oracle import Explained, Oracle
from reference.tiny_models import TINY_MODELS
from reference.unembedding import FrozenUnembedding
from reference.weights import Norm, Weights
from torch import Tensor, nn
from transformers import PreTrainedModel

TOKENS = (3, 14, 15, 92, 65, 35)
LAST = len(TOKENS) - 1
TARGET = 11
MODULES = {
    "llama": ("model.layers.{}.post_attention_layernorm", "model.layers.{}.mlp.down_proj", "model.norm"),
    "gpt2": ("transformer.h.{}.ln_2", "transformer.h.{}.mlp.c_proj", "transformer.ln_f"),
}
ATTENTION_MODULES = {
    "llama": ("model.layers.{}", "model.layers.{}.self_attn.o_proj"),
    "gpt2": ("transformer.h.{}", "transformer.h.{}.attn.c_proj"),
}


@pytest.fixture(params=few(TINY_MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model in float64, with attention weights to look at."""
    model = copy.deepcopy(TINY_MODELS[request.param]()).double()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def explained(model: PreTrainedModel) -> Explained:
    """The oracle's explanation of one token."""
    return Oracle(model, TOKENS).explain(target=TARGET)


def test_logits_are_the_models_own(model: PreTrainedModel, explained: Explained) -> None:
    logits = run(model)
    assert torch.allclose(explained.oracle.states.logits, logits, atol=1e-5)
    final = explained.unembedding.bs(explained.oracle.states.final[LAST]) + bias(explained)
    assert torch.allclose(final, logits[LAST], atol=1e-5)


def test_attention_weights_are_the_models_own(model: PreTrainedModel, explained: Explained) -> None:
    with torch.no_grad():
        attentions = model(torch.tensor([TOKENS]), output_attentions=True).attentions
    for states, pattern in zip(explained.layers, attentions, strict=True):
        assert torch.allclose(states.attention_weights, pattern[0].double(), atol=1e-6)


def test_scores_of_the_tiny_models_are_not_trivial(explained: Explained) -> None:
    for scores in (explained.ffn_neuron_scores(), explained.attention_neuron_scores()):
        assert 0.1 < max(scores.values()) < 3
        assert -3 < min(scores.values()) < -0.1
        assert sum(abs(score) > 0.01 for score in scores.values()) > 50


def test_layer_scores_are_complete(explained: Explained) -> None:
    assert abs(explained.layer_scores().remainder) < 1e-10


def test_neuron_writes_and_bias_sum_to_the_layers_write(explained: Explained) -> None:
    for number, (states, layer) in enumerate(zip(explained.layers, explained.weights.layers, strict=True)):
        ffn = sum(m * row for m, row in zip(states.coefficients[LAST], layer.down, strict=True)) + layer.down_bias
        assert torch.allclose(ffn, states.ffn[LAST])
        heads = range(explained.weights.heads)
        attention = sum(explained.position_vectors(number, head).sum(0) for head in heads) + layer.output_bias
        assert torch.allclose(attention, states.attention[LAST])


def test_ffn_neuron_score_is_what_adding_its_write_does(model: PreTrainedModel, explained: Explained) -> None:
    """The write is measured by removing the neuron in the model; the base is the FFN's own input."""
    scores = explained.ffn_neuron_scores()
    before_ffn, down, _ = names(model, MODULES)
    for layer, neuron in [(0, 3), (1, 7), (1, 40), (2, 11)]:
        base = input_of(model, before_ffn.format(layer))[LAST]
        write = difference(model, down.format(layer), lambda x, n=neuron: x[..., n].zero_())
        assert patched_score(model, base, write) == pytest.approx(scores[layer, neuron], abs=1e-5)


def test_attention_neuron_score_is_what_adding_its_write_does(model: PreTrainedModel, explained: Explained) -> None:
    """The write is measured by taking one position's share out of one dimension of what the head passes on."""
    scores = explained.attention_neuron_scores()
    block, output = names(model, ATTENTION_MODULES)
    size = explained.weights.head_size
    for layer, head, k, position in [(0, 1, 3, 0), (1, 3, 7, LAST), (2, 2, 5, 2), (2, 0, 0, 3)]:
        share = explained.attention_coefficient(layer, head, k, position)
        base = input_of(model, block.format(layer))[LAST]
        dimension = head * size + k
        write = difference(model, output.format(layer), lambda x, i=dimension, m=share: x[..., i].sub_(m))
        assert patched_score(model, base, write) == pytest.approx(scores[layer, head, k, position], abs=1e-5)


def test_bs_values_of_the_papers_first_table() -> None:
    """Table 1: adding a vector changes probabilities by its place among all logits, not by its own size."""
    before = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    unembedding = FrozenUnembedding(identity_weights(), torch.ones(4, dtype=torch.float64))
    for added, expected in [
        ([0, 0, 0, 0], [0.03, 0.09, 0.24, 0.64]),
        ([1, 1, 1, 3], [0.01, 0.02, 0.05, 0.93]),
        ([3, 1, 1, 1], [0.20, 0.07, 0.20, 0.53]),
        ([6, 4, 4, 4], [0.20, 0.07, 0.20, 0.53]),
    ]:
        logits = unembedding.bs(before + torch.tensor(added, dtype=torch.float64))
        probabilities = unembedding.log_probabilities(logits).exp()
        assert probabilities.tolist() == pytest.approx(expected, abs=0.0051)


def identity_weights() -> Weights:
    """Weights whose unembedding leaves vectors as they are when the last residual is all ones."""
    weights = object.__new__(Weights)
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    object.__setattr__(weights, "final_norm", Norm(ones, zeros, 0.0, centred=False))
    object.__setattr__(weights, "unembedding", torch.eye(4, dtype=torch.float64))
    object.__setattr__(weights, "unembedding_bias", zeros)
    return weights


def run(model: PreTrainedModel) -> Tensor:
    """[T, V]"""
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


def bias(explained: Explained) -> Tensor:
    """What the published convention leaves out of the logits. [V]"""
    weights = explained.weights
    return weights.unembedding @ weights.final_norm.bias + weights.unembedding_bias


def names(model: PreTrainedModel, table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The table's row of this family."""
    return table[model.config.model_type]


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., object]) -> Iterator[None]:
    """A forward pre-hook for a while."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def input_of(model: PreTrainedModel, name: str) -> Tensor:
    """What the named module receives. [T, width]"""
    seen = []
    with hooked(model.get_submodule(name), lambda _, inputs: seen.append(inputs[0][0].clone())):
        run(model)
    return seen[0]


def difference(model: PreTrainedModel, name: str, change: Callable[[Tensor], object]) -> Tensor:
    """How much of the named module's last output goes when `change` has edited its input in place. [d]"""
    module = model.get_submodule(name)
    edited = input_of(model, name).clone()
    with torch.no_grad():
        clean = module(edited)[LAST]
        change(edited[LAST : LAST + 1])
        return clean - module(edited)[LAST]


def patched_score(model: PreTrainedModel, base: Tensor, write: Tensor) -> float:
    """log p(target | base + write) − log p(target | base): the states replace the final norm's input, which keeps
    the scale of the clean run and drops its bias.
    """
    norm = model.get_submodule(names(model, MODULES)[2])
    clean_input = input_of(model, names(model, MODULES)[2])[LAST]
    centred = isinstance(norm, nn.LayerNorm)

    def scale(x: Tensor) -> Tensor:
        eps = norm.eps if centred else norm.variance_epsilon
        return torch.sqrt(((x - x.mean() * centred) ** 2).mean() + eps)

    def log_probability(state: Tensor) -> float:
        def frozen(_: nn.Module, __: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, LAST] = norm.weight * (state - state.mean() * centred) / scale(clean_input)
            return output

        handle = norm.register_forward_hook(frozen)
        try:
            return torch.log_softmax(run(model)[LAST], 0)[TARGET].item()
        finally:
            handle.remove()

    return log_probability(base + write) - log_probability(base)
