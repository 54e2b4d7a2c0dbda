"""Memory that is freed goes back to the system."""

import platform
import subprocess
import sys

import pytest

TEAR = """
import sys
from pathlib import Path
from neuron_attribution_server.settings import heap

def mebibytes():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) // 1024

if sys.argv[1] == "mapped":
    heap.map_large_pieces()
before, kept = mebibytes(), []
for size in [8 << 20] + [1 << 20] * 64:  # the first one teaches glibc to keep such pieces
    large = bytearray(size)
    large[:] = b"1" * size
    kept.append((large, bytearray(2000)))
kept = [small for _, small in kept]
if sys.argv[1] == "given back":
    heap.give_back()
print(mebibytes() - before)
"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"),
]


def left(how):
    """Mebibytes that a process keeps after it has freed seventy, with small pieces in between."""
    finished = subprocess.run([sys.executable, "-c", TEAR, how], capture_output=True, text=True, check=True)
    return int(finished.stdout)


def test_what_is_torn_by_small_pieces_is_given_back():
    assert left("nothing done") > 30
    assert left("mapped") < 10
    assert left("given back") < 10
