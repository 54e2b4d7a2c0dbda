"""What projections into the vocabulary take beside their answers: one piece of memory, however many vectors."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

GROWTH = r"""
import re
from pathlib import Path
import torch
from neuron_attribution_server.model.attribution.projection import extremes, vectors_held
from neuron_attribution_server.model.attribution.unembedding import Unembedding

def resident(field):
    return int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024

weight = torch.randn(49152, 4)
ones = torch.ones(4)
rest = {"epsilon": 1e-5, "centred": False, "constant": None, "largest_norm": 9.0, "cap": None}
unembedding = Unembedding(weight=weight, gamma=ones, **rest)
extremes(unembedding, torch.randn(2, 4), 1)
before = resident("VmRSS")
extremes(unembedding, torch.randn(30 * vectors_held(unembedding), 4), 1)
print(resident("VmHWM") - before)
"""


def test_many_vectors_are_projected_in_the_memory_of_a_few():
    """It used to grow by up to what all parts take, for their small results tore the heap's free pieces."""
    taken = int(subprocess.check_output([sys.executable, "-c", GROWTH], text=True))
    assert taken < 100  # MiB; a part takes 32
