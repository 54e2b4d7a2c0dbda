"""`neuron-attribution serve`: the server's own command, where its extra is installed."""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

HELP = "serve a model"
EXAMPLE = "serve --model demo"

# The server imports the model libraries in its worker process only: what is missing must be said before that.
SERVER_MODULES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "grpc_health",
    "grpc_reflection",
    "aiohttp",
    "prometheus_client",
    "cryptography",
)


class MissingExtraError(Exception):
    """An extra that a command needs is not installed."""

    def __init__(self, module: str | None, command: str = "serve", extra: str = "server") -> None:
        super().__init__(f"{command} needs {module}, which is not installed: pip install 'neuron-attribution[{extra}]'")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the server's arguments."""
    _module("cli").add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    status: int = server_module("cli").run(arguments)
    return status


def server_module(name: str, command: str = "serve", extra: str = "server") -> ModuleType:
    """A module of the server's package. Raises MissingExtraError where something that it needs is missing."""
    missing = next((module for module in SERVER_MODULES if find_spec(module) is None), None)
    if missing is not None:
        raise MissingExtraError(missing, command, extra)
    return _module(name, command, extra)


def server_settings() -> ModuleType:
    """The server's settings as options. Raises MissingExtraError where its package is not there."""
    return _module("settings.arguments")


def _module(name: str, command: str = "serve", extra: str = "server") -> ModuleType:
    try:
        return import_module(f"neuron_attribution_server.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("neuron_attribution_server."):
            raise  # A module of our own is never part of an extra: this is a broken installation.
        raise MissingExtraError(error.name, command, extra) from error
