"""Packed weights take what is predicted: themselves, and the largest matrix unpacked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from reference import packed_folders as folders

pytestmark = pytest.mark.process

TAKEN = r"""
import ctypes, gc, json, re, sys
from pathlib import Path
from neuron_attribution_server.model.architectures.packed.modules import tensor_bytes, unpacked_bytes
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

def resident(field):
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return 1024 * int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

task = AttributeTask(token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11),))
small, large, dtype = sys.argv[1:]
load_engine(LoadSettings(small, threads=1, dtype=dtype)).run([task])  # what libraries keep is no part of the weights
gc.collect()
before = resident("VmRSS")
engine = load_engine(LoadSettings(large, threads=1, dtype=dtype))
engine.run([task])
peaks = []
for _ in range(3):
    resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # loading reads files, which are in memory meanwhile
    engine.run([task])
    peaks.append(resident("VmHWM") - before)
view = engine._view
print(json.dumps({"least": min(peaks), "taken": max(peaks), "weights": tensor_bytes(view.model),
                  "unpacked": unpacked_bytes(view.model, view.device), "batch": engine.facts.memory.batch([task])}))
"""
LARGE = {"hidden_size": 2048, "intermediate_size": 24576, "num_hidden_layers": 1}
EXPERTS = {"hidden_size": 1024, "intermediate_size": 4096, "num_local_experts": 4}


@pytest.mark.parametrize("scheme", ["8 bit", "4 bit"])
def test_an_attribution_takes_what_is_predicted(tmp_path, monkeypatch, scheme) -> None:
    """Within a tenth, at the lowest of three peaks, as allocators keep more or less: the packed weights and a matrix
    of 200 MB. What a batch takes is always below what it is predicted to take.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = taken(tmp_path, scheme, LARGE, "float32")
    predicted = measured["weights"] + measured["unpacked"]
    assert 0.9 * predicted < measured["least"] < 1.1 * predicted, measured
    assert measured["taken"] < measured["weights"] + measured["batch"], measured


def test_experts_in_half_precision_take_no_more_than_is_predicted(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = taken(tmp_path, "MXFP4", EXPERTS, "bfloat16")
    assert measured["weights"] < measured["taken"] < measured["weights"] + measured["batch"], measured


def taken(folder, scheme, sizes, dtype) -> dict[str, int]:
    small = {"hidden_size": 128, "intermediate_size": 128, "num_local_experts": 4}
    for name, some in {"small": small, "large": sizes}.items():
        folders.random_folder(folder / name, scheme, some)
    arguments = [str(folder / name / "packed") for name in ("small", "large")]
    found: dict[str, int] = json.loads(
        subprocess.check_output([sys.executable, "-c", TAKEN, *arguments, dtype], text=True)
    )
    return found
