"""Longer trials than tests: python -m soak.kill_worker, from the tests' folder."""
