"""The plots show the numbers of the results, on the axes they are given, in every format."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from client.fake_service import EXPLANATION, HEAD, QUERY_LAYERS, TOKENS
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from neuron_attribution import Explanation, plots

EMPTY = Explanation(position=0, target=EXPLANATION.target)
DRAW = {
    "layers": lambda **where: plots.layers(EXPLANATION, **where),
    "heads": lambda **where: plots.heads(EXPLANATION, **where),
    "neuron_layers": lambda **where: plots.neuron_layers(EXPLANATION, **where),
    "query_layers": lambda **where: plots.query_layers(QUERY_LAYERS, **where),
    "head_positions": lambda **where: plots.head_positions(HEAD, TOKENS, **where),
}


@pytest.fixture(autouse=True)
def no_window():
    mpl.use("agg")
    yield
    pyplot.close("all")


def heights(bars):
    return [bar.get_height() for bar in bars]


def labels(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_layers():
    attention, ffn = plots.layers(EXPLANATION).containers
    assert heights(attention) == [0.5, 1.5]
    assert heights(ffn) == [2.5, -0.5]
    assert attention[0].get_facecolor() == to_rgba("salmon")
    assert ffn[0].get_facecolor() == to_rgba("seagreen")


def test_heads_stand_over_their_layers():
    (image,) = plots.heads(EXPLANATION).images
    np.testing.assert_array_equal(image.get_array(), EXPLANATION.head_scores.T)
    assert image.get_clim() == (-0.75, 0.75)


def test_neurons_are_counted_by_layer():
    axes = plots.neuron_layers(EXPLANATION)
    counts = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert counts == {"FFN value (1)": [0, 1], "attention value (1)": [1, 0], "FFN query (1)": [1, 0]}
    (line,) = plots.neuron_layers({"mine": EXPLANATION.neurons}, layer_count=4).lines
    assert list(line.get_ydata()) == [0, 1, 0, 0]


def test_query_layers_are_named_and_coloured_by_kind():
    axes = plots.query_layers(QUERY_LAYERS, top=2)
    assert heights(axes.containers[0]) == [3.0, 2.0]
    assert labels(axes) == ["FFN 0", "embedding"]
    assert axes.containers[0][0].get_facecolor() == to_rgba("seagreen")


def test_positions_of_a_head():
    axes = plots.head_positions(HEAD, TOKENS)
    assert [heights(bars) for bars in axes.containers] == [[0.125, 0.5, 0.125], [0.5, 0.25, 0.25]]
    assert labels(axes) == ["0 'The'", "1 ' sky'", "2 ' is\\n'"]


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_plot_is_saved_in_every_format(tmp_path, name, ending):
    path = tmp_path / f"plot.{ending}"
    DRAW[name]().figure.savefig(path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("name", DRAW)
def test_a_plot_is_drawn_where_it_is_told(name):
    figure, axes = pyplot.subplots(1, 2)
    assert DRAW[name](ax=axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert axes[1].has_data()
    assert pyplot.get_fignums() == [figure.number]


@pytest.mark.parametrize("draw", [plots.layers, plots.heads])
def test_a_part_that_is_missing_is_named(draw):
    with pytest.raises(ValueError, match="ask for the part"):
        draw(EMPTY)


def test_without_matplotlib_the_extra_is_named():
    code = "import sys; sys.modules['matplotlib'] = None; import neuron_attribution; import neuron_attribution.plots"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "plots needs matplotlib, which is not installed: pip install 'neuron-attribution[plot]'" in done.stderr
