"""Settings that must stand before PyTorch is imported: tests, too, share few cores with other processes."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from checkout import ROOT
from hypothesis import HealthCheck, settings
from neuron_attribution_server.model.loading import math_libraries

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

math_libraries.configure()
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests run as there are cores, or more: one thread each, and for the servers they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

gc.disable()  # until all is imported and collected, which leaves no garbage

pytest.register_assert_rewrite("reference", "service")
pytest_plugins = ["service.fixtures"]

LONGEST = (
    *("whole/test_demo_server.py", "model/test_demo_model.py", "deploy/test_image.py", "packaging/test_release.py"),
    *("alerts/test_live_alerts.py", "model/architectures/test_families.py", "model/loading/test_real_weights.py"),
    *("front_end/workers/test_supervision.py", "model/loading/test_memory.py", "deploy/test_envoy.py"),
    *("benchmarks/test_benchmarks.py", "load/test_load.py", "whole/test_demo.py", "whole/test_stopping.py"),
    *("settings/test_logs.py", "analysis/test_resuming.py"),
)
"""The files that take longest: first, or one process would be left with them when all else is done."""
TOGETHER = {
    "tests/deploy/test_pod.py": "tests/deploy/test_image.py",
    "tests/packaging/test_packages.py": "tests/packaging/test_release.py",
    "tests/packaging/test_oldest_runtimes.py": "tests/packaging/test_release.py",
    **dict.fromkeys(
        (
            *("tests/analysis/test_ray.py", "tests/browser/test_report.py", "tests/browser/test_web.py"),
            *("tests/whole/test_client_examples.py", "tests/whole/test_comparing.py", "tests/whole/test_examples.py"),
        ),
        "tests/whole/test_demo_server.py",
    ),
}
"""Files whose tests need what another's make in a minute or so, or its server: one process runs all of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """What is there now stays: no test shall take time to look for garbage in it."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """By file, except for files that belong together."""
    from xdist.scheduler import LoadFileScheduling

    class ByFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return ByFiles(config, log) if config.getoption("dist") == "loadfile" else None
