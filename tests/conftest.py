"""Settings that must stand before PyTorch is imported; what runs beside what."""

import os
from pathlib import Path

import pytest

# Spinning OpenMP threads slow everything down many times where several processes share few cores, as the tests do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ATTRIBUTION = Path(__file__).parent / "attribution"


def pytest_collection_modifyitems(items):
    """Files of attribution run beside everything else, which runs in turn: it has servers, ports and waits."""
    for item in items:
        group = item.path.name if item.path.parent == ATTRIBUTION else "the rest"
        item.add_marker(pytest.mark.xdist_group(group))
