"""Packed weights take what is predicted: themselves, and the largest matrix unpacked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from reference import packed_folders as folders

pytestmark = pytest.mark.process

TAKEN = r"""
import ctypes, json, re, sys
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
before = resident("VmRSS")
engine = load_engine(LoadSettings(large, threads=1, dtype=dtype))
engine.run([task])
resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # loading reads files, which are in memory meanwhile
engine.run([task])
view = engine._view
print(json.dumps({"taken": resident("VmHWM") - before, "weights": tensor_bytes(view.model),
                  "unpacked": unpacked_bytes(view.model, view.device), "batch": engine.facts.memory.batch([task])}))
"""
LARGE = {"hidden_size": 1024, "intermediate_size": 24576, "num_hidden_layers": 2}
EXPERTS = {"hidden_size": 2048, "intermediate_size": 4096, "num_local_experts": 8, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("scheme", "sizes", "dtype"),
    [("4 bit", LARGE, "float32"), ("MXFP4", EXPERTS, "float32"), ("8 bit", LARGE, "bfloat16")],
)
def test_an_attribution_takes_what_is_predicted(tmp_path, monkeypatch, scheme, sizes, dtype) -> None:
    """Within a tenth, at its peak; what is taken beside is part of what a batch is predicted to take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = {"hidden_size": 128, "intermediate_size": 128, "num_local_experts": 8}
    for name, some in {"small": small, "large": sizes}.items():
        folders.random_folder(tmp_path / name, scheme, some)
    arguments = [str(tmp_path / name / "packed") for name in ("small", "large")]
    measured = json.loads(subprocess.check_output([sys.executable, "-c", TAKEN, *arguments, dtype], text=True))
    predicted = measured["weights"] + measured["unpacked"]
    assert 0.9 * predicted < measured["taken"] < 1.1 * predicted, measured
    assert measured["taken"] < measured["weights"] + measured["batch"], measured
