"""Settings that must stand before PyTorch is imported."""

import os

# Spinning OpenMP threads slow everything down many times where several processes share few cores, as the tests do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
