"""What docs/analyzing.md and the example show, run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from analysis.studies import PATIENCE, analyze, corpus, environment, served
from neuron_attribution.analysis.corpus import FIELDS
from neuron_attribution.analysis.tables import SCHEMAS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "analyzing.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a study, as the page's code expects it."""
    folder = tmp_path_factory.mktemp("documented")
    with served() as address:
        assert analyze(corpus(folder / "prompts.jsonl", prompts=30), folder / "study", address).returncode == 0
    return folder


def test_the_page_reads_with_pandas_and_duckdb():
    assert any("pandas" in block for block in BLOCKS)
    assert any("duckdb" in block for block in BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_of_the_page_runs(number, folder):
    words = [sys.executable, "-W", "error", "-c", BLOCKS[number]]
    finished = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()


def test_the_page_names_every_table_and_field(folder):
    for name in (*SCHEMAS, *(path.stem for path in (folder / "study" / "aggregates").iterdir())):
        assert f"`{name}`" in PAGE, name
    for name in (name for names in FIELDS.values() for name in names):
        assert f"`{name}`" in PAGE, name


def test_the_example_runs(tmp_path):
    prompts = corpus(tmp_path / "prompts.jsonl", prompts=12)
    with served() as address:
        words = [sys.executable, str(ROOT / "client" / "examples" / "analyze.py"), prompts, tmp_path / "study", address]
        finished = subprocess.run(
            map(str, words), capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment()
        )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0] == "0 prompts have failed"
    assert len(lines) == 11
    assert json.loads((tmp_path / "study" / "conditions.json").read_text())["options"]["top_k"] == 100
