"""Settings that must stand before PyTorch is imported: tests, too, share few cores with other processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from checkout import ROOT
from neuron_attribution_server.model.loading import math_libraries

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

math_libraries.configure()
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests run as there are cores: one thread each, and for the servers they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("reference", "service")
pytest_plugins = ["service.fixtures"]

LONGEST = (
    *("model/test_demo_model.py", "deploy/test_image.py", "whole/test_demo_server.py", "alerts/test_live_alerts.py"),
    *("model/loading/test_real_weights.py", "front_end/workers/test_supervision.py", "whole/test_comparing.py"),
    *("packaging/test_release.py", "browser/test_web.py", "browser/test_report.py", "analysis/test_ray.py"),
    *("model/loading/test_memory.py", "deploy/test_envoy.py", "benchmarks/test_benchmarks.py", "load/test_load.py"),
)
"""Files that take half a minute and more: first, or one process would be left with them when all else is done."""
TOGETHER = {
    "tests/deploy/test_pod.py": "tests/deploy/test_image.py",
    "tests/packaging/test_packages.py": "tests/packaging/test_release.py",
    "tests/packaging/test_oldest_runtimes.py": "tests/packaging/test_release.py",
}
"""Files whose tests need what another's make in a minute or so: one process runs both."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """By file, except for files that belong together."""
    from xdist.scheduler import LoadFileScheduling

    class ByFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return ByFiles(config, log) if config.getoption("dist") == "loadfile" else None
