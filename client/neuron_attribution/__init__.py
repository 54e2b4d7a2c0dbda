"""Which neurons of a language model made it say what it said: the client of the neuron attribution service."""
