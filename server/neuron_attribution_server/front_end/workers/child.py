"""Where a worker process begins: it loads the model's side by name, so that the front end never sees it."""

from __future__ import annotations

from importlib import import_module

MAIN = "neuron_attribution_server.model.process.main"


def main(*arguments: object) -> None:
    """Run in the worker process until it ends. It is given what the `main` of the model's side takes."""
    import_module(MAIN).main(*arguments)
