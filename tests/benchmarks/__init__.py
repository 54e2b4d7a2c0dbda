"""Benchmarks of the attribution: `python -m benchmarks` with tests/ on the path, or `make benchmark`."""

from neuron_attribution_server.model.loading import math_libraries

math_libraries.configure()
