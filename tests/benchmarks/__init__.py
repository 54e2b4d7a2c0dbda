"""Benchmarks of the attribution: `python -m benchmarks` with tests/ on the path, or `make benchmark`."""
