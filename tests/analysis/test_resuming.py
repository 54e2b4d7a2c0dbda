"""A study goes on where it was stopped: the real command is killed, and the data set is the same bytes."""

import json
import random
import signal
import subprocess

import pytest
from analysis.studies import (
    PATIENCE,
    TOP_K,
    StudiedEngine,
    analyze,
    command,
    contents,
    corpus,
    environment,
    served,
    with_revision,
)
from neuron_attribution.analysis.atomic_files import PARTIAL
from pyarrow import parquet


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("corpus") / "prompts.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with served() as address:
        finished = analyze(prompts, folder, address)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_killed_three_times_it_gives_the_same_bytes(prompts, uninterrupted, tmp_path):
    engine = StudiedEngine()
    with served(engine) as address:
        for _ in range(3):
            engine.hold_after(random.randint(1, 8))
            kill_once_held(command(prompts, tmp_path, address, "--top-k", str(TOP_K), "--shard-prompts", "8"), engine)
            engine.released.set()
        assert len(list((tmp_path / "prompts").glob("*.parquet"))) < 13, "it was never interrupted"
        engine.limit = None
        finished = analyze(prompts, tmp_path, address)
    assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path) == contents(uninterrupted)


def kill_once_held(words, engine):
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert engine.reached.wait(PATIENCE), process.communicate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)


def test_there_are_no_double_rows(uninterrupted):
    numbers = parquet.read_table(uninterrupted / "prompts")["prompt"].to_pylist()
    assert numbers == list(range(100))
    keys = parquet.read_table(uninterrupted / "neurons").to_pandas()
    assert not keys.duplicated(["prompt", "explained", "kind", "direction", "rank"]).any()
    assert len(keys) == 3 * TOP_K * parquet.read_table(uninterrupted / "prompts").to_pandas()["explained"].sum()


def test_what_a_kill_left_behind_is_written_over(prompts, uninterrupted, tmp_path):
    with served() as address:
        analyze(prompts, tmp_path, address)
        (tmp_path / "prompts" / "part-000003.parquet").unlink()
        (tmp_path / "neurons" / "part-000003.parquet").write_bytes(b"half a")
        (tmp_path / "neurons" / f"part-000009.parquet{PARTIAL}").write_bytes(b"half a")
        finished = analyze(prompts, tmp_path, address)
    assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path) == contents(uninterrupted)


def test_a_finished_study_asks_for_nothing(prompts, uninterrupted):
    engine = StudiedEngine()
    before = contents(uninterrupted)
    with served(engine) as address:
        engine.batches.clear()
        assert analyze(prompts, uninterrupted, address).returncode == 0
    assert engine.batches == []
    assert contents(uninterrupted) == before


def test_other_conditions_are_refused_by_name(prompts, uninterrupted, tmp_path):
    before = contents(uninterrupted)
    with served(with_revision("revision-2")) as address:
        model = analyze(prompts, uninterrupted, address)
    with served() as address:
        options = analyze(prompts, uninterrupted, address, "--top-k", "7", "--own-predictions")
        other = analyze(corpus(tmp_path / "other.jsonl", prompts=9), uninterrupted, address)
    assert [each.returncode for each in (model, options, other)] == [1, 1, 1]
    assert "revision was 'revision-1' and is 'revision-2' now" in model.stderr
    assert "top k was 12 and is 7 now" in options.stderr
    assert "explained was 'targets, completions, answers' and is 'own predictions' now" in options.stderr
    assert "prompts was 100 and is 9 now" in other.stderr
    assert contents(uninterrupted) == before


def test_a_folder_with_something_else_is_left_alone(prompts, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with served() as address:
        finished = analyze(prompts, tmp_path, address)
    assert finished.returncode == 1
    assert "holds something else" in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_conditions_are_recorded(uninterrupted):
    conditions = json.loads((uninterrupted / "conditions.json").read_text())
    assert conditions["model"] == {"name": "fake", "revision": "revision-1", "dtype": "float32"}
    assert conditions["options"]["top_k"] == TOP_K
    assert conditions["corpus"]["prompts"] == 100
    assert {"python", "pyarrow", "neuron-attribution", "server"} <= set(conditions["software"][0])
