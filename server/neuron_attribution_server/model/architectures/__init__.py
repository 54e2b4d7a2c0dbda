"""Facts about model architectures, as data, and the one walker that reads them."""
