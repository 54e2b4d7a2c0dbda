"""Settings that must stand before PyTorch is imported: tests, too, share few cores with other processes."""

from neuron_attribution_server.model.loading import math_libraries

math_libraries.settle()
