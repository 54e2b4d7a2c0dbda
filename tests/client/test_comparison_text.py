"""A comparison for people and for programs."""

import json

import numpy as np
import pytest
from client.fake_service import IDENTITY, PROJECTION, TOKENS
from neuron_attribution.cli.comparison_text import comparison_lines, head_effect_lines
from neuron_attribution.cli.main import main
from neuron_attribution.comparisons import (
    ComparedSide,
    Comparison,
    DifferenceRanking,
    HeadEffects,
    NeuronComparison,
    NeuronDifference,
)
from neuron_attribution.display.plain_json import plain, plain_json
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.results import LayerScores, ModelIdentity, NeuronScore, PromotedSide, Token, TokenPrediction

BLUE, RED = TokenPrediction(Token(7, " blue"), 0.75, -0.25, 1), TokenPrediction(Token(10, " red"), 0.125, -2.0, 2)


def side(scale, model=IDENTITY, contrast=None):
    layers = LayerScores(np.array([0.5, 1.5 * scale], np.float32), np.array([2.5, -0.5], np.float32), -4.0, -0.25, 0.0)
    heads = scale * np.array([[0.25, 0.25], [0.75, 0.5]], np.float32)
    return ComparedSide(model, TOKENS, BLUE, contrast, (BLUE, RED), layers, heads)


def difference(neuron, first, second):
    scores = [
        NeuronScore(neuron, score, None, coefficient, PROJECTION, promoted)
        for score, coefficient, promoted in (first, second)
    ]
    return NeuronDifference(neuron, *scores)


TOP, BOTTOM = PromotedSide.TOP, PromotedSide.BOTTOM
FFN = NeuronComparison(
    64,
    20,
    16,
    DifferenceRanking((difference(FfnNeuron(1, 17), (0.5, -1.25, BOTTOM), (-0.25, 2.0, TOP)),), 0.5, 0.0, True),
    DifferenceRanking((difference(FfnNeuron(0, 3), (0.0, 1.0, TOP), (0.25, -2.0, BOTTOM)),), 0.375, 0.125, False),
)
ATTENTION = NeuronComparison(
    32,
    32,
    16,
    DifferenceRanking((difference(AttentionNeuron(0, 1, 2), (0.5, 1.0, TOP), (0, 0, TOP)),), -np.inf, 0.0, True),
    DifferenceRanking((difference(AttentionNeuron(1, 0, 2), (0.5, 1.0, TOP), (0.75, 0, TOP)),), 0.1, 0.0, False),
)
COMPARISON = Comparison(side(1.0), side(0.5), FFN, ATTENTION)


def test_for_people():
    out = comparison_lines(COMPARISON)
    for line in (
        r"  first   explained  ' blue'   7       0.7500          -0.2500     1  'The sky is\n'",
        "log probability of the target",
        "  added by attention layers      0.7500   2.0000   1.2500",
        "  attention 1      0.7500   1.5000   0.7500",
        "  1.h0      0.3750  0.7500  0.3750",
        "FFN neurons whose score fell most (64 exist, 20 scored on both sides, exact)",
        "  1.17        0.7500  0.5000  -0.2500            -1.2500              2.0000  ' 緑'",
        "FFN neurons whose score rose most (64 exist, 20 scored on both sides, not exact: one that differs by up to "
        "0.1250 more may be missing)",
        "  0.3        -0.2500  0.0000  0.2500             1.0000             -2.0000  ' 緑'",
        "attention neurons whose score rose most (32 exist, 32 scored on both sides, not guaranteed to be exact)",
        "model  tiny (revision abc123, float32)",
    ):
        assert line in out, f"{line!r} is missing from:\n" + "\n".join(out)


def test_two_models_and_a_contrast_for_people():
    other = ModelIdentity("tiny", "def456", "float32")
    out = comparison_lines(Comparison(side(1.0, contrast=RED), side(0.5, other, RED), FFN, ATTENTION))
    assert "log probability of the target minus that of the contrast" in out
    assert sum(line.split()[1:2] == ["contrast"] for line in out) == 2
    assert out[-2:] == [
        "first model   tiny (revision abc123, float32)",
        "second model  tiny (revision def456, float32)",
    ]


EFFECTS = HeadEffects(
    IDENTITY,
    TOKENS,
    BLUE,
    np.array([[0.25, 0.875], [0.75, 0.5]], np.float32),
    np.array([[-1.5, -0.125], [-0.25, -0.5]], np.float32),
    np.array([[0.5, 0.25], [0.0, 0.125]], np.float32),
)


def test_effects_for_people():
    out = head_effect_lines(EFFECTS, 1)
    assert out[out.index("heads that lower it most when they are zeroed") + 2] == "  0.h0  -0.5000       0.2500  0.5000"
    assert out[out.index("heads that raise it most when they are zeroed") + 2] == "  0.h1  0.1250       0.8750  0.2500"


def test_json_has_every_field_and_what_follows_from_them():
    got = json.loads(plain_json(COMPARISON))
    assert list(got) == [
        *("first", "second", "ffn_neurons", "attention_neurons"),
        *("attention_layers", "ffn_layers", "heads"),
    ]
    assert got["heads"] == [[0.125, 0.125], [0.375, 0.25]]
    assert got["first"]["layers"]["attention"] == [0.5, 1.5]
    assert got["attention_neurons"]["fell"]["bound"] is None
    (item,) = got["ffn_neurons"]["fell"]["neurons"]
    assert (item["neuron"], item["difference"]) == ("1.17", 0.75)
    assert (item["first"]["promoted_side"], item["second"]["coefficient"]) == ("bottom", 2.0)
    assert item["first"]["promoted"] == [{"token": {"id": 9, "text": " 緑"}, "score": -2.0}]
    assert plain(EFFECTS)["changes"] == [[-0.5, 0.125], [0.0, -0.25]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare", "give a TEXT or messages (--user, --messages), one of them"),
        ("compare a", "nothing to compare with: give a second text, --other-address or an intervention"),
        ("compare a b --every-head", "--every-head takes one text"),
        ("compare a --every-head --zero 0.h1", "--every-head takes one text"),
        ("compare a --every-head --contrast b", "--every-head takes one text"),
        ("compare a b --target c --target-id 4", "--target and --target-id exclude each other"),
        ("compare a b --contrast c --contrast-id 4", "--contrast and --contrast-id exclude each other"),
        ("compare a b --top-k 0", "'0' is not a whole number from 1"),
    ],
)
def test_wrong_usage(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_no_server_on_the_other_side(address, capsys):
    """The failed side is named by its address."""
    assert main(["compare", "a", "--other-address", "localhost:1", "--address", address, "--timeout", "20"]) == 1
    assert "no server reachable at localhost:1" in capsys.readouterr().err


def test_a_comparison_shows_itself():
    assert repr(COMPARISON) == "Comparison(' blue' 0.7500 against ' blue' 0.7500: 1.17 0.7500, 0.1.2 0.5000; tiny)"
    assert COMPARISON._repr_html_().count("<details") == 8
    frame = COMPARISON.to_dataframe()
    assert list(frame.component) == ["1.17", "0.3", "0.1.2", "1.0.2"]
    assert list(frame.direction) == ["fell", "rose"] * 2
