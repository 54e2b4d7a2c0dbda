"""Real weights: what the scores promise, shown by taking neurons away. One family with norms after its blocks.

The facts are ones that the models know.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import AttributeOptions, Part
from neuron_attribution.results import Explanation, NeuronScore
from neuron_attribution_server.model.capture.capture import set_plain, set_recordable
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.model.loading.sources.demo import DemoUnavailableError
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.gemma_model import UnavailableError, gemma_file
from reference.gguf_reading import reading_once
from tokenizers import Tokenizer
from torch import Tensor
from verify.brute_force import BruteForce
from verify.states import record
from verify.subjects import SUBJECTS

pytestmark = pytest.mark.process

FACTS = {
    "demo": {
        "The Eiffel Tower is located in the city of": " Paris",
        "Michio Kaku works in the area of theoretical": " physics",
        "The author of Romeo and Juliet is William": " Shakespeare",
        "Toulouse belongs to the continent of": " Europe",
    },
    "gemma": {
        "The Eiffel Tower is located in the city of": " Paris",
        "Monday, Tuesday, Wednesday,": " Thursday",
        "The author of Romeo and Juliet is William": " Shakespeare",
        "The official language of Spain is": " Spanish",
    },
}
FFN, ATTENTION = 100, 200
"""Neurons taken away, as in the paper."""
RANDOM_DRAWS = 3
PARTS = frozenset({Part.LAYERS, Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS})
OPTIONS = AttributeOptions(parts=PARTS, top_k=ATTENTION, projection_top_k=0)


@pytest.fixture(scope="module", params=list(FACTS))
def name(request: pytest.FixtureRequest) -> str:
    """Which model."""
    return request.param


@pytest.fixture(scope="module")
def engine(name: str) -> Engine:
    """A small model as it was published."""
    try:
        with reading_once():
            return load_engine(LoadSettings("demo" if name == "demo" else str(gemma_file())))
    except (UnavailableError, DemoUnavailableError) as error:
        pytest.skip(f"the model cannot be fetched: {error}")


@pytest.fixture(scope="module")
def explained(engine: Engine, name: str) -> dict[str, tuple[tuple[int, ...], int, Explanation]]:
    """The token ids of each fact, its answer's id, and why the model gives it."""
    tokenizer = Tokenizer.from_str(engine.facts.tokenizer)
    found = {}
    for prompt, answer in FACTS[name].items():
        ids = tuple(tokenizer.encode(prompt).ids)
        (target,) = tokenizer.encode(answer, add_special_tokens=False).ids
        task = AttributeTask(token_ids=ids, explained=(ExplainedToken(len(ids) - 1, target),), options=OPTIONS)
        (outcome,) = engine.run([task])
        found[prompt] = ids, target, outcome.explanations[0]
    return found


def test_files_are_told_apart_by_what_is_in_them(engine: Engine) -> None:
    """One of the models is a GGUF file as it was published."""
    assert engine.facts.identity.revision.startswith("sha256:")


def test_the_facts_are_known(explained) -> None:
    for _, _, explanation in explained.values():
        assert explanation.target.rank == 1
        assert explanation.target.probability > 0.3


def test_layer_scores_are_complete(explained) -> None:
    for _, _, explanation in explained.values():
        layers = explanation.layers
        total = layers.attention.sum() + layers.ffn.sum()
        assert layers.final_log_probability - layers.embedding_log_probability == pytest.approx(total, abs=1e-4)
        assert layers.final_log_probability == pytest.approx(explanation.target.log_probability, abs=1e-4)


@pytest.mark.parametrize("kind", ["ffn", "attention"])
def test_the_top_is_that_of_brute_force(engine: Engine, name: str, explained, kind: str) -> None:
    """Every neuron of the layer that has most of the top, at every position, scored against the whole vocabulary."""
    ids, target, explanation = explained["The author of Romeo and Juliet is William"]
    ranked = getattr(explanation, f"{kind}_value_neurons").neurons
    layers = [entry.neuron.layer for entry in ranked]
    layer = max(set(layers), key=layers.count)
    scores = brute_force(engine, name, ids, target, kind, layer)
    mine = {_place(entry, engine): entry.score for entry in ranked if entry.neuron.layer == layer}
    assert len(mine) >= 10
    for place, score in mine.items():
        assert score == pytest.approx(scores[place].item(), abs=1e-5)
        scores[place] = -torch.inf
    assert scores.max() <= ranked[-1].score + 1e-5


def test_taking_away_the_top_neurons_takes_the_answer_away(engine: Engine, explained) -> None:
    for ids, target, explanation in explained.values():
        neurons = [entry.neuron for entry in explanation.ffn_value_neurons.neurons[:FFN]]
        neurons += [entry.neuron for entry in explanation.attention_value_neurons.neurons[:ATTENTION]]
        assert probability(engine, ids, target, neurons) < 0.1 * explanation.target.probability


def test_taking_away_as_many_others_changes_little(engine: Engine, explained) -> None:
    generator = random.Random(0)
    changes = []
    for ids, target, explanation in explained.values():
        before = explanation.target.probability
        for _ in range(RANDOM_DRAWS):
            after = probability(engine, ids, target, some_neurons(engine, generator))
            changes.append(abs(after - before) / before)
    assert sum(changes) / len(changes) < 0.1


def some_neurons(engine: Engine, generator: random.Random) -> list[object]:
    """As many neurons of either kind as the paper takes away."""
    sizes = engine.facts.sizes
    ffn = [FfnNeuron(generator.randrange(sizes.layers), generator.randrange(sizes.ffn_width)) for _ in range(FFN)]
    width = sizes.heads * sizes.head_size
    units = [(generator.randrange(sizes.layers), generator.randrange(width)) for _ in range(ATTENTION)]
    return ffn + [_Unit(layer, unit) for layer, unit in units]


class _Unit:
    """An attention neuron by its number within the layer."""

    def __init__(self, layer: int, unit: int) -> None:
        self.layer, self.unit = layer, unit


def probability(engine: Engine, ids: Sequence[int], target: int, neurons: Sequence[object]) -> float:
    """The target's probability with neurons zeroed at every position, by the model itself."""
    with _zeroed(engine, neurons), torch.inference_mode():
        logits = engine._view.model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits.softmax(-1)[target].item()


@contextmanager
def _zeroed(engine: Engine, neurons: Sequence[object]) -> Iterator[None]:
    """The inputs of the down projection and of attention's output projection, by the modules' names in Llama."""
    size, handles = engine.facts.sizes.head_size, []
    for number, layer in enumerate(engine._view.model.model.layers):
        mine = [neuron for neuron in neurons if neuron.layer == number]
        ffn = [neuron.index for neuron in mine if isinstance(neuron, FfnNeuron)]
        rest = [neuron for neuron in mine if not isinstance(neuron, FfnNeuron)]
        attention = [n.unit if isinstance(n, _Unit) else n.head * size + n.index for n in rest]
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(_without(ffn)))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(_without(attention)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without(units: list[int]):
    def hook(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0].clone()
        states[..., units] = 0
        return (states,)

    return hook


def brute_force(engine: Engine, name: str, ids: Sequence[int], target: int, kind: str, layer: int) -> Tensor:
    """log p(target | base + m v) - log p(target | base) of every neuron v of a layer, [n, positions]."""
    subject, model = SUBJECTS[name], engine._view.model
    set_plain(engine._view)
    try:
        states = record(subject, model, ids)
    finally:
        set_recordable(engine._view)
    assert states.target == target
    (scores,) = BruteForce(subject, model, [states], torch.get_num_threads()).run([(kind, layer)])
    return scores[kind].increase[layer]


def _place(entry: NeuronScore, engine: Engine) -> tuple[int, int]:
    """Where a neuron's score is among those of its layer."""
    if isinstance(entry.neuron, FfnNeuron):
        return entry.neuron.index, 0
    assert entry.position is not None
    return entry.neuron.head * engine.facts.sizes.head_size + entry.neuron.index, entry.position
