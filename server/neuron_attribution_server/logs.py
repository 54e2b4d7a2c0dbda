"""Log lines of the server and of its worker process, on standard error."""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Send everything from `level` on to standard error; other libraries only from warnings on."""
    logging.basicConfig(format=_FORMAT, level=logging.WARNING)
    logging.getLogger("neuron_attribution_server").setLevel(level.upper())
