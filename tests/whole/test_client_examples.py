"""The examples, against the demo model: docs/notebooks.md is what its script does now, and Node.js gets its answer."""

import json
import re
import shutil
from difflib import SequenceMatcher

import matplotlib as mpl
import numpy as np
import pytest
from checkout import ROOT, attempt, tracked_files
from checkout import run as command
from matplotlib import pyplot
from neuron_attribution import Client
from notebook_page import IMAGES, MARKDOWN, PAGE, cells, described, page, run

NUMBER = re.compile(r"-?\d+\.\d+")
TOLERANCE = 2e-3
SAME = 0.98


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def address(demo_server):
    return demo_server.address


@pytest.fixture(scope="module")
def now(address, images):
    """The script's cells with what they print now."""
    return run(address, images)


@pytest.fixture(scope="module")
def node_client(tmp_path_factory):
    """The client for Node.js, built in a copy of what its build reads."""
    if not shutil.which("npm"):
        pytest.skip("npm, with Node.js, is not installed")
    copy = tmp_path_factory.mktemp("node")
    for name in tracked_files():
        if name.startswith(("client/examples/node/", "protos/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    folder = copy / "client" / "examples" / "node"
    command("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
    return folder / "build" / "attribute.js"


def test_every_cell_of_the_notebooks_is_there():
    titles = " ".join(cell.title for cell in cells() if cell.title != MARKDOWN)
    spans = re.findall(r"Cells? (\d+)(?:–(\d+))?", titles)
    numbers = [range(int(first), int(last or first) + 1) for first, last in spans]
    assert [number for each in numbers for number in each] == list(range(20))


def test_the_page_is_what_a_run_gives(now):
    """But for what another processor's rounding may change: the order of two tokens that are nearly level."""
    written, fresh = PAGE.read_text(), page(now)
    assert len(written.splitlines()) == len(fresh.splitlines())
    assert SequenceMatcher(None, words(written), words(fresh), autojunk=False).ratio() > SAME
    pairs = zip(numbers(written), numbers(fresh), strict=True)
    assert np.mean([abs(one - other) < TOLERANCE for one, other in pairs]) > SAME


def test_the_pictures_show_what_a_run_gives(now, images):
    drawn = {name for cell in now for name in cell.pictures}
    assert drawn == {path.stem for path in IMAGES.glob("*.svg")}
    for name in drawn:
        written, fresh = described(IMAGES / f"{name}.svg"), described(images / f"{name}.svg")
        assert written.keys() == fresh.keys()
        for part, values in written.items():
            assert values == pytest.approx(fresh[part], abs=TOLERANCE)


def test_the_code_on_the_plots_page_runs(address, tmp_path, monkeypatch):
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plots.md").read_text(), re.DOTALL)
    exec("\n".join(blocks).replace("localhost:50051", address), {})
    pyplot.close("all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.svg", "layers.pdf"]


def test_a_client_for_node_gets_what_the_python_client_gets(address, node_client):
    with Client(address) as client:
        explanation = client.attribute("The capital of France is", top_k=5).explanations[0]
    first, *lines = command("node", node_client, address).splitlines()
    assert first == f'" Paris" {explanation.target.probability:.4f}'
    for line, score in zip(lines, explanation.ffn_value_neurons.neurons, strict=True):
        tokens = " ".join(json.dumps(item.token.text, ensure_ascii=False) for item in score.promoted[:3])
        assert line == f"{score.neuron} {score.score:.4f} {tokens}"


def test_a_client_for_node_says_what_went_wrong(address, node_client):
    failed = attempt("node", node_client, address, "")
    assert failed.returncode == 1
    assert failed.stderr == "3 INVALID_ARGUMENT: prompt.text: is empty; give at least one token\n"


def words(text):
    return NUMBER.sub("N", text).split()


def numbers(text):
    return [float(number) for number in NUMBER.findall(text)]
