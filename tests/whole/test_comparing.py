"""Comparing on the demo model, over a real port: the command, its JSON, and the example."""

import json
import os
import re
import subprocess
import sys

import pytest
from checkout import ROOT
from neuron_attribution import Client, Head, Intervention
from service.demo_server import run

PROMPT = "The capital of France is"
ITALY = "The capital of Italy is"


@pytest.fixture(scope="module")
def address(demo_server):
    return demo_server.address


def compare(*arguments, address):
    """What the command prints; nothing may go wrong."""
    finished = run("compare", *arguments, "--timeout", "100", address=address)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def test_two_prompts_as_json(address):
    """The numbers are those the client has, and they are consistent among themselves."""
    got = json.loads(compare(PROMPT, ITALY, "--top-k", "3", "--json", address=address))
    assert [got[side]["target"]["token"]["text"] for side in ("first", "second")] == [" Paris", " Rome"]
    assert [token["text"] for token in got["second"]["tokens"]] == ["The", " capital", " of", " Italy", " is"]
    assert len(got["attention_layers"]) == len(got["ffn_layers"]) == len(got["heads"]) == 30
    assert got["heads"][23][4] == got["first"]["head_scores"][23][4] - got["second"]["head_scores"][23][4]
    for kind, count in (("ffn_neurons", 46_080), ("attention_neurons", 17_280)):
        assert got[kind]["neurons"] == count
        for ranking in (got[kind]["fell"], got[kind]["rose"]):
            assert ranking["exact"] is True
            assert len(ranking["neurons"]) == 3
            for item in ranking["neurons"]:
                assert item["difference"] == item["first"]["score"] - item["second"]["score"]
                assert len(item["first"]["projection"]["top"]) == len(item["first"]["promoted"]) == 10
    italian = got["ffn_neurons"]["fell"]["neurons"][0]
    assert italian["neuron"] == "29.555"
    assert italian["second"]["coefficient"] > 10
    assert " Italian" in [item["token"]["text"] for item in italian["first"]["promoted"]]


def test_a_head_zeroed_for_people(address):
    text = compare(PROMPT, "--zero", "23.h4", "--top-k", "2", "--projection-top-k", "2", address=address)
    lines = text.splitlines()
    assert lines[0] == "predictions"
    assert "' Paris'" in lines[2]
    assert "' Paris'" in lines[3]
    assert any(line.split()[:1] == ["23.h4"] and line.split()[-1] == "0.0000" for line in lines)
    for title in ("FFN neurons whose score fell most", "attention neurons whose score rose most"):
        assert any(line.startswith(title) and line.endswith(" exact)") for line in lines), text


def test_every_head(address):
    """The head with the highest score is the one whose loss costs most."""
    got = json.loads(compare(PROMPT, "--every-head", "--json", address=address))
    assert got["target"]["token"]["text"] == " Paris"
    assert (len(got["changes"]), {len(row) for row in got["changes"]}) == (30, {9})
    assert min(min(row) for row in got["changes"]) == got["changes"][23][4] < -0.5
    with Client(address) as client:
        (result,) = client.intervene(PROMPT, [[Intervention(heads=(Head(23, 4),))]]).results
    assert got["probabilities"][23][4] == pytest.approx(result.after.target.probability, abs=1e-6)


def test_the_tuned_model_of_the_page(tmp_path):
    """The adapter that the page on comparing compares the demo model with."""
    script = [sys.executable, str(ROOT / "tests" / "tuned_demo.py"), str(tmp_path / "rome")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert re.search(r"rome: after \d+ s ' Rome' has the probability 0\.9", done.stdout)


def test_the_example(address):
    """The neuron that says eight is what the sum's head feeds."""
    example = [sys.executable, str(ROOT / "client" / "examples" / "compare.py"), address]
    done = subprocess.run(example, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, strongest, *others = done.stdout.splitlines()
    assert first.startswith("'8' has probability 0.79")
    assert second.endswith("without head 23.h3")
    assert strongest.startswith("28.541")
    assert "'8' 'eight'" in strongest
    assert len(others) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", ITALY], "prompt.text: is empty"),
        ([PROMPT, PROMPT], "other_prompt: nothing differs"),
        ([PROMPT, ITALY, "--target", " Parisian Rome"], "target.text: "),
        ([PROMPT, "--zero", "30.h0"], "layer 30 does not exist"),
        ([PROMPT, "--every-head", "--target-id", "49152"], "target.id: token 49152 does not exist"),
    ],
)
def test_a_failed_comparison_is_one_line(address, arguments, message):
    finished = run("compare", *arguments, address=address)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
