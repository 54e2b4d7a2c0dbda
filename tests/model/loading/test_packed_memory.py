"""Packed weights take what is predicted: themselves, and the largest matrix unpacked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from reference import packed_folders as folders

pytestmark = pytest.mark.process

TAKEN = r"""
import gc, json, re, sys
from pathlib import Path
from neuron_attribution_server.settings import heap
heap.map_large_pieces()  # what is needed is measured, not what the heap keeps of freed pieces
from neuron_attribution_server.model.architectures.packed.modules import tensor_bytes, unpacked_bytes
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

def resident(field):
    gc.collect()
    heap.give_back()
    return 1024 * int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

def taken(folder):
    before = resident("VmRSS")
    engine = load_engine(LoadSettings(folder, threads=1))
    engine.run([task])
    resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # loading reads files, which are in memory meanwhile
    engine.run([task])
    view = engine._view
    return {"peak": resident("VmHWM") - before, "weights": tensor_bytes(view.model),
            "unpacked": unpacked_bytes(view.model, view.device), "batch": engine.facts.memory.batch([task])}

task = AttributeTask(token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11),))
tiny, *large = sys.argv[1:]
taken(tiny)  # what libraries keep is no part of the weights
print(json.dumps([taken(folder) for folder in large]))
"""
SCHEMES = ("8 bit", "4 bit")
TINY = {"hidden_size": 128, "intermediate_size": 128}
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1}


def test_an_attribution_takes_what_is_predicted(tmp_path, monkeypatch) -> None:
    """Within a tenth, and less than a batch is predicted to take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders.random_folder(tmp_path / "tiny", SCHEMES[0], TINY)
    for scheme in SCHEMES:
        folders.random_folder(tmp_path / scheme, scheme, LARGE)
    arguments = [str(tmp_path / name / "packed") for name in ("tiny", *SCHEMES)]
    found: list[dict[str, int]] = json.loads(
        subprocess.check_output([sys.executable, "-c", TAKEN, *arguments], text=True)
    )
    assert len(found) == len(SCHEMES)
    for each in found:
        predicted = each["weights"] + each["unpacked"]
        assert 0.9 * predicted < each["peak"] < 1.1 * predicted, found
        assert each["peak"] < each["weights"] + each["batch"], found
