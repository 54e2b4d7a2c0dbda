"""Prompts that fail are recorded and counted, and tried again when asked."""

import errno
import json

import pytest
from analysis.studies import StudiedEngine, analyze, contents, served
from neuron_attribution.analysis.shards import ShardStore
from neuron_attribution.analysis.tables import SCHEMAS
from pyarrow import parquet

TOO_DEEP = '{"prompt": ' + "[" * 100_000
ROWS = [
    {"prompt": "The capital of France is"},
    {"prompt": "They refuse"},
    {"prompt": "The capital", "target": "two tokens"},
    {"text": "It is", "token_ids": [1]},
    {"prompt": 7},
    {"token_ids": [1, 2, 3]},
]
STATUSES = [
    "ok",
    "UNSUPPORTED_BY_MODEL",
    "NOT_ONE_TOKEN",
    "UNREADABLE_ROW",
    "UNREADABLE_ROW",
    "ok",
    *2 * ["UNREADABLE_ROW"],
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*map(json.dumps, ROWS), '{"prompt": "broken', TOO_DEEP]))
    return path


def test_failures_are_recorded_and_counted(prompts, tmp_path):
    with served() as address:
        finished = analyze(prompts, tmp_path / "study", address)
    assert finished.returncode == 3
    assert "6 prompts have failed" in finished.stderr
    rows = parquet.read_table(tmp_path / "study" / "prompts").to_pylist()
    assert [row["status"] for row in rows] == STATUSES
    assert "give one of prompt, token_ids and messages" in rows[3]["message"]
    assert "prompt is int, not str" in rows[4]["message"]
    assert rows[1]["text"] == "They refuse"
    assert "| UNREADABLE_ROW | 4 |" in (tmp_path / "study" / "summary.md").read_text()


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
    assert "5 prompts have failed" in retried.stderr
    assert sum(map(len, engine.batches)) == 1
    assert contents(tmp_path / "study") == contents(tmp_path / "never failed")


def test_a_full_disk_loses_no_finished_prompt(prompts, tmp_path, monkeypatch):
    """The shard that is written again, with prompts that were retried, stays what it was."""
    with served() as address:
        analyze(prompts, tmp_path / "study", address)
    before = contents(tmp_path / "study")
    store = ShardStore(tmp_path / "study")
    whole = {name: store.read(name, 0) for name in SCHEMAS}
    written = iter(range(len(SCHEMAS) - 1))

    def write(table, path, **options):
        if next(written, None) is None:
            raise OSError(errno.ENOSPC, "no space left")
        real(table, path, **options)

    real = parquet.write_table
    monkeypatch.setattr("neuron_attribution.analysis.tables.parquet.write_table", write)
    with pytest.raises(OSError, match="no space left"):
        store.write(0, whole)
    assert ShardStore(tmp_path / "study").finished() == [0]
    assert contents(tmp_path / "study") == before


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "prompts.parquet").write_text("no parquet")
    with served() as address:
        finished = analyze(tmp_path / "prompts.parquet", tmp_path / "study", address)
    assert finished.returncode == 1
    assert "prompts.parquet is no whole Parquet file" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
