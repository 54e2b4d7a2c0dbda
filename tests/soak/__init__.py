"""Long runs against a real server process: `python -m soak.NAME` from tests/, or `make soak`."""
