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

def peak(engine):
    peaks = []
    for _ in range(2):
        gc.collect()
        resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # loading reads files, which are in memory meanwhile
        engine.run([task])
        peaks.append(resident("VmHWM"))
    return min(peaks)

task = AttributeTask(token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11),))
before, found = 0, []
for folder in sys.argv[1:]:
    engine = load_engine(LoadSettings(folder, threads=1))
    engine.run([task])  # what libraries keep is no part of the weights
    view = engine._view
    found.append({"peak": peak(engine) - before, "weights": tensor_bytes(view.model),
                  "unpacked": unpacked_bytes(view.model, view.device), "batch": engine.facts.memory.batch([task])})
    del engine, view
    gc.collect()
    before = resident("VmRSS") if not before else before
print(json.dumps(found))
"""
TINY = {"hidden_size": 128, "intermediate_size": 128}
SMALL = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
LARGE = {"hidden_size": 2048, "intermediate_size": 12288, "num_hidden_layers": 1}


@pytest.mark.parametrize("scheme", ["8 bit", "4 bit"])
def test_an_attribution_takes_what_is_predicted(tmp_path, monkeypatch, scheme) -> None:
    """Not more, and within a tenth what a model with larger matrices takes over one with smaller: what allocators keep,
    whatever the size, is in both.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, small, large = taken(tmp_path, scheme)
    for each in (small, large):
        assert each["peak"] < predicted(each) < each["weights"] + each["batch"], each
    more = predicted(large) - predicted(small)
    assert 0.9 * more < large["peak"] - small["peak"] < 1.1 * more, (small, large)


def predicted(measured: dict[str, int]) -> int:
    return measured["weights"] + measured["unpacked"]


def taken(folder, scheme) -> list[dict[str, int]]:
    for name, sizes in {"tiny": TINY, "small": SMALL, "large": LARGE}.items():
        folders.random_folder(folder / name, scheme, sizes)
    arguments = [str(folder / name / "packed") for name in ("tiny", "small", "large")]
    found: list[dict[str, int]] = json.loads(
        subprocess.check_output([sys.executable, "-c", TAKEN, *arguments], text=True)
    )
    return found
