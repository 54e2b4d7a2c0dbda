"""Settings that must stand before PyTorch is imported: tests, too, share few cores with other processes."""

import os

import pytest
from neuron_attribution_server.model.loading import math_libraries

math_libraries.configure()
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests run as there are cores: one thread each, and for the servers they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("reference", "service")
pytest_plugins = ["service.fixtures"]
