"""Settings that must stand before PyTorch is imported: tests, too, share few cores with other processes."""

import os

import pytest
from checkout import ROOT
from neuron_attribution_server.model.loading import math_libraries

math_libraries.configure()
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests run as there are cores: one thread each, and for the servers they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("reference", "service")
pytest_plugins = ["service.fixtures"]

LONGEST = (
    *("model/test_demo_model.py", "front_end/workers/test_supervision.py", "model/loading/test_real_weights.py"),
    *("deploy/test_image.py", "browser/test_web.py", "browser/test_report.py", "whole/test_demo_server.py"),
    *("alerts/test_live_alerts.py", "whole/test_comparing.py", "analysis/test_ray.py"),
)
"""Files that take a minute or so: first, or one process would be left with them when all else is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
