"""The server of the neuron attribution service."""
