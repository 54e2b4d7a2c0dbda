"""Prompts that fail are recorded and counted, and tried again when asked."""

import json

import pytest
from analysis.studies import StudiedEngine, analyze, contents, served
from pyarrow import parquet

ROWS = [
    {"prompt": "The capital of France is"},
    {"prompt": "They refuse"},
    {"prompt": "The capital", "target": "two tokens"},
    {"text": "It is", "token_ids": [1]},
    {"prompt": 7},
    {"token_ids": [1, 2, 3]},
]
STATUSES = ["ok", "UNSUPPORTED_BY_MODEL", "NOT_ONE_TOKEN", "UNREADABLE_ROW", "UNREADABLE_ROW", "ok", "UNREADABLE_ROW"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*map(json.dumps, ROWS), '{"prompt": "broken']))
    return path


def test_failures_are_recorded_and_counted(prompts, tmp_path):
    with served() as address:
        finished = analyze(prompts, tmp_path / "study", address)
    assert finished.returncode == 3
    assert "5 prompts have failed" in finished.stderr
    rows = parquet.read_table(tmp_path / "study" / "prompts").to_pylist()
    assert [row["status"] for row in rows] == STATUSES
    assert "give either prompt or token_ids" in rows[3]["message"]
    assert "prompt is int, not str" in rows[4]["message"]
    assert rows[1]["text"] == "They refuse"
    assert "| UNREADABLE_ROW | 3 |" in (tmp_path / "study" / "summary.md").read_text()


def test_failed_prompts_are_tried_again_when_asked(prompts, tmp_path):
    engine, patient = StudiedEngine(), StudiedEngine()
    patient.refuses = False
    with served(patient) as address:
        analyze(prompts, tmp_path / "never failed", address)
    with served(engine) as address:
        analyze(prompts, tmp_path / "study", address)
        engine.refuses = False
        engine.batches.clear()
        assert analyze(prompts, tmp_path / "study", address).returncode == 3
        assert engine.batches == [], "nothing is tried again unless asked"
        retried = analyze(prompts, tmp_path / "study", address, "--retry-failed")
    assert "4 prompts have failed" in retried.stderr
    assert sum(map(len, engine.batches)) == 1
    assert contents(tmp_path / "study") == contents(tmp_path / "never failed")
