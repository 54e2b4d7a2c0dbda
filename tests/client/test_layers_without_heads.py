"""A model with layers that have no heads, over a port: their cells are empty everywhere, and nothing asks for them."""

from __future__ import annotations

import random

import matplotlib as mpl
import numpy as np
import pytest
from neuron_attribution import Client, Head, InvalidArgumentError, LayerParts, Mixer, plots
from neuron_attribution.cli.commands.model import model_lines
from neuron_attribution.display.records import records
from neuron_attribution.display.tables import tables
from neuron_attribution.evaluation.random_neurons import RandomNeurons
from neuron_attribution_server.model.loading.models import engine_from
from reference.served import served_engine, word_tokenizer
from reference.tiny_families import VOCABULARY, tiny_family

PROMPT, OTHER = (45, 73, 93, 18, 59, 56), (90, 10, 90, 95, 1)
CONVOLUTION = LayerParts((Mixer.SHORT_CONVOLUTION,), 0, 40)
WITH_HEADS = {str(Head(1, head)) for head in range(4)}


@pytest.fixture(scope="module")
def client() -> Client:
    with served_engine(engine_from(tiny_family("lfm2"), word_tokenizer(VOCABULARY))) as client:
        yield client


def heads_in(text: str) -> set[str]:
    """The names of heads in a text."""
    return {word for word in text.split() if word[:1].isdigit() and ".h" in word}


def shown(result: object) -> str:
    """A result's tables, row by row."""
    return "\n".join(" ".join(row) for table in tables(result) for row in table.rows)


def test_the_model_says_what_its_layers_are(client: Client) -> None:
    info = client.get_model()
    assert info.layers == (CONVOLUTION, LayerParts((Mixer.ATTENTION,), 4, 40), CONVOLUTION)
    text = "\n".join(str(line) for line in model_lines(info))
    assert "short convolution, 40 FFN neurons" in text
    assert "attention (4 heads), 40 FFN neurons" in text
    assert ("layer", "2", "short convolution, 40 FFN neurons") in [tuple(row) for row in records(info).rows]


def test_cells_without_heads_are_empty(client: Client) -> None:
    result = client.attribute(PROMPT, parts=["layers", "heads"])
    (explanation,) = result.explanations
    assert np.isnan(explanation.head_scores).all(1).tolist() == [True, False, True]
    assert explanation.layers.attention.all()
    assert heads_in(shown(explanation)) == WITH_HEADS
    mpl.use("agg")
    (image,) = plots.heads(explanation).images
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()).all(0), [True, False, True])
    assert np.isfinite(image.get_clim()).all()
    assert "NaN" not in result.to_html().split("<script", 1)[0]


def test_no_head_that_is_not_there_is_zeroed(client: Client) -> None:
    effects = client.head_effects(PROMPT)
    assert np.isnan(effects.changes).all(1).tolist() == [True, False, True]
    assert np.isfinite(effects.changes[1]).all()
    assert "4 heads" in repr(effects)
    assert heads_in(shown(effects)) == WITH_HEADS
    assert {row[0] for row in records(effects).rows} == WITH_HEADS


def test_comparisons_leave_them_out(client: Client) -> None:
    comparison = client.compare(PROMPT, OTHER)
    assert heads_in(shown(comparison)) == WITH_HEADS
    assert '"head_scores":[[null,' in comparison.to_html()


def test_random_attention_neurons_are_some_that_there_are(client: Client) -> None:
    info = client.get_model()
    neurons = RandomNeurons(info.sizes, info.layers).attention(random.Random(1), 1000)
    assert len(neurons) == len(set(neurons)) == 4 * info.sizes.head_size
    assert {neuron.layer for neuron in neurons} == {1}


def test_naming_one_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="layer 2 has no heads: it mixes positions by a short convolution"):
        client.project_neuron("0.7", through=Head(2, 0))
