"""How results show themselves: in a line, in a notebook, with rich, as data frames, to a type checker."""

import builtins
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas
import pytest
from checkout import ROOT
from neuron_attribution import Client, NeuronProjection, ProjectedToken, Projection, Token, results, traces
from neuron_attribution.display.common import without_common
from neuron_attribution.display.tables import tables
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.rendering import Displayed
from rich.console import Console

from client import fake_service as samples

RESULTS = (
    samples.ATTRIBUTION,
    samples.EXPLANATION,
    samples.AGGREGATE,
    samples.EXPLANATION.ffn_value_neurons,
    samples.EXPLANATION.layers,
    samples.FFN_SCORE,
    samples.HEAD,
    samples.QUERY_LAYERS,
    samples.INTERVENED,
    samples.TRACE,
    samples.PROJECTIONS,
    samples.PROJECTIONS.projections[0],
    samples.TOKENIZATION,
    samples.INFO,
)
HERE = Path(__file__).parent
SCRIPT_TAGS = Projection(top=(ProjectedToken(Token(1, '<script>alert("&")</script>'), 1.0),))


class Page(HTMLParser):
    """The texts of a page by tag; it must be well formed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def name(result):
    return type(result).__name__


def test_every_kind_of_result_is_here():
    kinds = (kind for module in (results, traces) for kind in vars(module).values())
    displayed = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Displayed)}
    assert {type(result) for result in RESULTS} == displayed - {Displayed}


@pytest.mark.parametrize("result", RESULTS, ids=name)
def test_a_line_says_what_it_is(result):
    text = repr(result)
    assert text.startswith(f"{name(result)}(")
    assert "\n" not in text
    assert len(text) < 250


def test_the_lines():
    assert repr(samples.TRACE) == "Trace(' blue' 0.7500: 1.17@2 0.5000, 0.5@1 -0.2500; 6 nodes, 7 edges; tiny)"
    assert repr(samples.INTERVENED) == "InterveneResult(' blue' 0.7500 → ' red' 0.1250, KL 0.5000; tiny)"
    assert repr(samples.ATTRIBUTION) == "AttributeResult('The sky is\\n' → ' blue' 0.7500; tiny)"
    assert repr(samples.EXPLANATION.ffn_value_neurons) == "NeuronRanking(1.17 0.5000; 1 of 64, exact)"
    assert repr(samples.FFN_SCORE) == "NeuronScore(1.17 0.5000 promotes ' 緑')"


@pytest.mark.parametrize("result", RESULTS, ids=name)
def test_a_notebook_shows_tables(result):
    page = Page(result._repr_html_())
    assert {"table", "th", "td"} <= set(page.tags)
    assert not {"script", "style", "link", "img"} & set(page.tags)
    assert repr(result) in page.texts


def test_text_in_a_notebook_stays_text():
    page = Page(NeuronProjection(FfnNeuron(1, 2), SCRIPT_TAGS)._repr_html_())
    assert "script" not in page.tags
    assert """'<script>alert("&")</script>'""" in page.texts


def test_what_lowers_the_target_is_shown_with_what_it_suppresses():
    """The sample's coefficient is negative: it raises its bottom tokens, and lowers its top ones."""
    score = samples.FFN_SCORE
    assert [item.token.text for item in score.promoted] == [" 緑"]
    assert [item.token.text for item in score.suppressed] == [" blue", "\x1b[31m"]
    falling = Page(replace(samples.EXPLANATION, ffn_value_neurons=None, neurons=())._repr_html_())
    assert "suppresses" in falling.texts
    assert "' blue' '\\x1b[31m'" in falling.texts


def test_beside_a_contrast_the_values_of_both_tokens_are_shown_and_else_the_rank_of_one():
    columns = tables(samples.EXPLANATION.ffn_value_neurons)[0].names
    assert columns == ["neuron", "score", "coefficient", "active in", "target value", "contrast value", "promotes"]
    alone = tables(replace(samples.FFN_SCORE, contrast=None))[0]
    assert dict(zip(alone.names, alone.rows[0], strict=True))["target rank"] == "1"


def test_a_neuron_that_is_as_strong_whatever_is_asked_is_faint():
    """In a terminal, in a notebook; and left out on demand."""
    rare = replace(samples.FFN_SCORE, neuron=FfnNeuron(1, 18), activity=0.125)
    ranking = replace(samples.EXPLANATION.ffn_value_neurons, neurons=(samples.FFN_SCORE, rare))
    assert tables(ranking)[0].faint == {0}
    assert ranking._repr_html_().count("opacity") == 1
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(ranking)
    shown = [line for line in console.file.getvalue().splitlines() if "1.17" in line or "1.18" in line][1:]
    assert ["\x1b[2m" in line for line in shown] == [True, False]
    explanation = replace(samples.EXPLANATION, ffn_value_neurons=ranking)
    kept, hidden = without_common(replace(samples.ATTRIBUTION, explanations=(explanation,)))
    assert kept.explanations[0].ffn_value_neurons.neurons == (rare,)
    assert kept.explanations[0].attention_value_neurons == explanation.attention_value_neurons
    assert hidden == 2, "this one, and the one that lowers the target"


def test_a_notebook_is_not_filled_by_a_long_ranking():
    ranking = replace(samples.EXPLANATION.ffn_value_neurons, neurons=(samples.FFN_SCORE,) * 300)
    page = Page(ranking._repr_html_())
    assert page.tags.count("tr") == 21
    assert "… 280 more: to_dataframe() has them all" in page.texts


@pytest.mark.parametrize("result", RESULTS, ids=name)
def test_rich_shows_tables(result):
    console = Console(file=io.StringIO(), width=200)
    console.print(result)
    assert console.file.getvalue().splitlines()[0] == repr(result)
    assert len(console.file.getvalue().splitlines()) > 3


def test_rankings_as_data_frames():
    frame = samples.EXPLANATION.attention_value_neurons.to_dataframe()
    row = frame.iloc[0].to_dict()
    assert frame.expert.isna().all()
    del row["expert"]
    assert row == {
        "rank": 1,
        "component": "0.1.2",
        "kind": "attention_neuron",
        "layer": 0,
        "head": 1,
        "index": 2,
        "position": 1,
        "score": 0.25,
        "coefficient": 0.75,
        "promotes": (" blue", "\x1b[31m"),
        "target_value": 2.5,
        "target_rank": 1,
        "contrast_value": -0.25,
        "contrast_rank": 40,
        "activity": None,
    }
    assert str(frame["index"].dtype) == "Int64"
    empty = samples.EXPLANATION.attention_value_neurons_decreasing.to_dataframe()
    assert list(empty.columns) == list(frame.columns)
    assert len(empty) == 0


def test_an_explanation_as_a_data_frame():
    frame = samples.EXPLANATION.to_dataframe()
    assert list(frame[frame.ranking == "layers"].component) == ["FFN 0", "attention 1", "attention 0", "FFN 1"]
    assert list(frame[frame.ranking == "heads"].component) == ["1.h0", "0.h1"]
    assert list(frame[frame.ranking == "ffn_query_layers"].kind) == ["ffn", "embedding", "attention"]
    whole = samples.ATTRIBUTION.to_dataframe()
    assert list(whole.columns[:2]) == ["explanation", "target"]
    assert set(whole.target) == {" blue"}
    assert list(whole.source_token.dropna()) == [" sky"]


def test_layers_and_heads_as_data_frames():
    assert samples.EXPLANATION.layers.to_dataframe().to_dict("list") == {
        "layer": [0, 1],
        "attention": [0.5, 1.5],
        "ffn": [2.5, -0.5],
    }
    assert list(samples.HEAD.to_dataframe().columns) == ["position", "score", "attention_weight"]


def test_interventions_as_a_data_frame():
    frame = samples.INTERVENED.to_dataframe()
    watched = frame[frame.kind == "watched"]
    assert list(watched.set) == [0, 1]
    assert list(watched.token) == [" blue", " red"]
    assert list(watched.kl_divergence.dropna()) == [0.5]


def test_heads_without_positions_are_listed_all_the_same():
    only = replace(samples.EXPLANATION, heads=(), heads_decreasing=())
    frame = only.to_dataframe()
    assert list(frame[frame.ranking == "heads"].component) == ["1.h0", "1.h1", "0.h0", "0.h1"]
    assert "<td" in only._repr_html_()
    assert "1.h0" in Page(only._repr_html_()).texts


def test_a_client_says_where_it_calls_and_keeps_its_token():
    with Client("server:50051", token="secret", tls=True) as client:
        assert repr(client) == "Client('server:50051': TLS, with a token, timeout 60.0 s)"


@pytest.mark.parametrize("result", RESULTS, ids=name)
def test_every_result_is_a_data_frame(result):
    frame = result.to_dataframe()
    assert len(frame) > 0
    pandas.read_csv(io.StringIO(frame.to_csv(index=False)))


def test_without_pandas_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without_pandas(wanted, *arguments):
        if wanted == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(wanted, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    message = r"to_dataframe needs pandas, which is not installed: pip install 'neuron-attribution\[pandas\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        samples.EXPLANATION.to_dataframe()


def test_tokens_together_come_before_each_by_itself():
    """As tables, as rows and in a line; what they do together has no number among the explanations."""
    whole = replace(samples.ATTRIBUTION, aggregate=samples.AGGREGATE)
    titles = [table.title for table in tables(whole)]
    first = ["tokens", "the explained tokens together, their sum", "the other answer"]
    assert titles[:3] == first
    assert titles[3] == "log probability of the answer minus that of the other answer"
    assert titles[4:6] == ["strongest layers", "heads"]
    assert titles[-1] == tables(samples.EXPLANATION)[-1].title
    assert tables(whole)[1].rows[-1][0] == "together"
    frame = whole.to_dataframe()
    together = frame[frame["explanation"].isna()]
    assert set(together["target"]) == {" is\n blue"}
    assert set(together["ranking"]) == {"layers", "heads", "ffn_value_neurons"}
    assert frame["explanation"].iloc[-1] == 0
    alone = replace(whole, explanations=())
    assert "' is\\n blue' against ' red', sum of 2 tokens -2.2500" in repr(alone)
    assert "<table" in alone.to_html()


def test_a_ranking_that_was_not_asked_for_is_told_how_to_ask():
    only = replace(samples.EXPLANATION, query_ffn_neurons_decreasing=None)
    assert only.ranking("ffn_value_neurons") is samples.EXPLANATION.ffn_value_neurons
    with pytest.raises(LookupError, match=r"ask with parts=\['query-ffn-neurons'\], direction='decrease' or 'both'"):
        only.ranking("query_ffn_neurons_decreasing")


@pytest.mark.process
def test_a_type_checker_knows_what_comes_back(tmp_path):
    """Of a script, and of the README's."""
    path, readme = HERE / "typed_script.py", tmp_path / "readme.py"
    [code] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    readme.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", str(path)]
    command.append(str(readme))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = path.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# an error")}
    errors = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error:" in line]
    assert {Path(name).name for name, _ in errors} == {path.name}, done.stdout
    found = {int(number) for _, number in errors}
    assert found == wrong, done.stdout + done.stderr
