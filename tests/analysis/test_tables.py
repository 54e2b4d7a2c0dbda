"""What the tables hold, and the aggregates against sums made in another way."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from analysis.studies import TOP_K, analyze, corpus, served
from client.fake_service import ATTRIBUTION, COVERAGE, IDENTITY
from neuron_attribution.analysis.corpus import Corpus, CorpusItem
from neuron_attribution.analysis.layer_aggregates import ExplanationSums
from neuron_attribution.analysis.rows import result_rows
from neuron_attribution.analysis.tables import EXPLANATIONS
from neuron_attribution.requests import AttributeOptions
from pyarrow import parquet

NEURON = ["kind", "direction", "layer", "head", "expert", "index"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with served() as address:
        assert analyze(corpus(folder / "prompts.jsonl", prompts=30), folder / "study", address).returncode == 0
    return folder / "study"


def table(study, name):
    return parquet.read_table(study / name).to_pandas()


def aggregate(study, name):
    return pd.read_parquet(study / "aggregates" / f"{name}.parquet")


def test_an_answer_becomes_rows():
    rows = result_rows(CorpusItem(5, text="The sky is\n", id="a", type="color"), ATTRIBUTION)
    assert rows.model == IDENTITY
    [prompt] = rows.tables["prompts"].to_pylist()
    assert prompt["tokens"] == ["The", " sky", " is\n"]
    assert (prompt["prompt"], prompt["status"], prompt["revision"]) == (5, "ok", "abc123")
    [explained] = rows.tables["explanations"].to_pylist()
    assert (explained["target"], explained["probability"], explained["rank"]) == (" blue", 0.75, 1)
    assert explained["head_scores"] == [[0.25, 0.25], [0.75, 0.75]]
    assert explained["heads"] == [
        {"layer": 1, "head": 0, "score": 0.75},
        {"layer": 0, "head": 1, "score": -0.5},
    ]
    assert (explained["ffn_scored"], explained["ffn_exact"]) == (COVERAGE.scored, True)
    neurons = rows.tables["neurons"].to_pylist()
    assert [(row["kind"], row["direction"], row["rank"]) for row in neurons] == [
        ("ffn", "increase", 1),
        ("ffn", "decrease", 1),
        ("attention", "increase", 1),
        ("query", "increase", 1),
    ]
    assert {name: neurons[2][name] for name in ("layer", "head", "expert", "index", "position", "coefficient")} == {
        "layer": 0,
        "head": 1,
        "expert": None,
        "index": 2,
        "position": 1,
        "coefficient": 0.75,
    }
    assert neurons[0]["promoted_side"] == "bottom"
    assert neurons[0]["bottom_tokens"] == [" 緑"]
    [timings] = rows.tables["timings"].to_pylist()
    assert timings == {
        "prompt": 5,
        "queue": 0.001,
        "tokenization": 0.002,
        "forward": 0.003,
        "scoring": 0.004,
        "batch_requests": 2,
        "batch_tokens": 7,
        "cached": False,
    }


def test_neurons_are_counted_as_pandas_counts_them(study):
    rows, ours = table(study, "neurons"), aggregate(study, "neurons").set_index(NEURON).sort_index()
    groups = rows.groupby(NEURON, dropna=False)
    expected = pd.DataFrame(
        {
            "share": groups["prompt"].nunique() / 30,
            "mean_score": groups["score"].mean(),
            "score_per_prompt": groups["score"].sum() / 30,
            "mean_rank": groups["rank"].mean(),
            "types": groups["type"].nunique(),
        }
    ).sort_index()
    assert len(ours) == len(expected) > 50
    for name in expected:
        np.testing.assert_allclose(ours[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5)


def test_types_share_neurons_as_sets_do(study):
    by_type = aggregate(study, "neurons_by_type").query("kind == 'attention' and direction == 'increase'")
    strongest = {
        name: set(map(tuple, rows.nlargest(TOP_K, "score_per_prompt")[["layer", "head", "index"]].to_numpy()))
        for name, rows in by_type.groupby("type")
    }
    [shared] = aggregate(study, "shared_neurons").query("kind == 'attention'").to_dict("records")
    assert (shared["type_a"], shared["type_b"]) == ("capital", "language")
    assert shared["shared"] == len(strongest["capital"] & strongest["language"])
    assert shared["share"] == shared["shared"] / TOP_K


@pytest.mark.parametrize("kind", [None, "language"])
def test_layers_and_heads_are_means(study, kind):
    rows = table(study, "explanations")
    rows = rows if kind is None else rows[rows["type"] == kind]
    layers, heads = (aggregate(study, name) for name in ("layers", "heads"))
    layers = layers[layers["type"].isna() if kind is None else layers["type"] == kind]
    heads = heads[heads["type"].isna() if kind is None else heads["type"] == kind].sort_values(["layer", "head"])
    np.testing.assert_allclose(layers["ffn_score"], np.stack(rows["ffn_scores"]).astype(float).mean(0))
    matrix = np.array([np.stack(each) for each in rows["head_scores"]]).astype(float).mean(0)
    np.testing.assert_allclose(heads["mean_score"], matrix.flatten())
    assert heads["strongest_share"].sum() == pytest.approx(3)


def test_layers_of_neurons_add_up_to_the_rankings(study):
    layers = aggregate(study, "layer_neurons")
    sums = layers.groupby(["type", "kind"], dropna=False)["neurons_per_token"].sum()
    assert len(sums) == 9
    np.testing.assert_allclose(sums, TOP_K)


def items(path, **options):
    return list(Corpus(path, AttributeOptions(), **options))


def test_the_usual_names_of_fields_are_read(tmp_path):
    path = tmp_path / "facts.jsonl"
    rows = [
        {"known_id": 3, "relation_id": "P449", "subject": "It", "attribute": "CBS", "prompt": "It premieres on"},
        {"type": "language", "subject": "Canada", "answer": "English", "prompt": "People in Canada speak"},
        {"token_ids": [1, 2], "target": 7, "contrast": " no", "id": "x"},
        {"prompt": "Go", "completion": " on and on"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    known, language, ids, completed = items(path)
    assert (known.id, known.type, known.answer, known.request.completion) == ("3", "P449", "CBS", " CBS")
    assert (language.type, language.request.completion) == ("language", " English")
    assert (ids.request.prompt, ids.request.target, ids.request.contrast) == ((1, 2), 7, " no")
    assert completed.request.completion == " on and on"
    own = items(path, own_predictions=True)
    assert {(item.request.target, item.request.completion) for item in own} == {(None, None)}


def test_parquet_and_text_are_read(tmp_path):
    pd.DataFrame({"prompt": ["One", "Two"], "type": ["a", None], "other": [1, 2]}).to_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.txt").write_bytes(b"One\r\n\nTwo\n\xff\n")
    one, two = items(tmp_path / "p.parquet")
    assert [(one.text, one.type), (two.text, two.type)] == [("One", "a"), ("Two", None)]
    texts = items(tmp_path / "p.txt")
    assert [item.request.prompt for item in texts][:2] == ["One", "Two"]
    assert texts[2].text == "?"


def test_a_head_at_both_ends_counts_once():
    [first] = result_rows(CorpusItem(0), ATTRIBUTION).tables["explanations"].to_pylist()
    first["heads"] *= 2
    sums = ExplanationSums()
    sums.add(pa.Table.from_pylist([first], schema=EXPLANATIONS))
    assert set(sums.heads()["strongest_share"].to_pylist()) == {0.0, 1.0}
