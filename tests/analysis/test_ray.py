"""A corpus on a local Ray cluster: the same rows as through the service, with the demo model."""

import json
import subprocess

from analysis.studies import COMMAND, environment
from pyarrow import parquet

ROWS = [
    {"prompt": "The capital of France is", "type": "capital"},
    {"prompt": "People in Mexico speak", "answer": "Spanish", "type": "language"},
    {"prompt": "Toulouse belongs to the continent of", "target": "two tokens"},
    {"prompt": 5},
    {"prompt": "Michio Kaku works in the area of theoretical"},
]
OPTIONS = ["--top-k", "20", "--shard-prompts", "2"]
RAY = ["--ray", "local", "--model", "demo", "--threads", "1", "--actors", "2", "--batch-prompts", "3"]


def analyze(prompts, folder, *options):
    words = [*COMMAND, "analyze", str(prompts), "--output", str(folder), *OPTIONS, *options]
    finished = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment() | {"RAY_AUTH_MODE": "disabled"},
    )
    assert finished.returncode == 3, finished.stderr


def test_service_and_ray_give_the_same_rows(demo_server, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    analyze(prompts, tmp_path / "ray", *RAY)
    analyze(prompts, tmp_path / "service", "--address", demo_server.address)
    for name in ("prompts", "explanations", "neurons"):
        ours, rays = (parquet.read_table(tmp_path / study / name) for study in ("service", "ray"))
        assert ours.equals(rays), name
        assert len(ours) >= 3
    assert (tmp_path / "service" / "summary.md").read_bytes() == (tmp_path / "ray" / "summary.md").read_bytes()
    statuses = parquet.read_table(tmp_path / "ray" / "prompts")["status"].to_pylist()
    assert statuses == ["ok", "ok", "NOT_ONE_TOKEN", "UNREADABLE_ROW", "ok"]
