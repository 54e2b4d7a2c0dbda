"""The `serve` command: its options, and running the server until it is stopped."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from neuron_attribution.cli.main import client_variables

from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.calls.calls import call_ids
from neuron_attribution_server.front_end.workers.pool import worker_pool
from neuron_attribution_server.model.process.main import Loading
from neuron_attribution_server.server_process import serve
from neuron_attribution_server.settings.config import (
    GROUPS,
    ConfigurationError,
    ServerConfig,
    environment_name,
    flag_name,
    is_switch,
    read_config,
)
from neuron_attribution_server.settings.config_file import config_text, read_file
from neuron_attribution_server.settings.environment import check_environment
from neuron_attribution_server.settings.logs import configure_logging

LIMITS = "limits"
_WRONG_USAGE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting. Their values stay texts: flags, environment and file are read alike, later."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, which variables and flags overrule")
    parser.add_argument("--print-config", action="store_true", help="print all settings as such a file, and end")
    grouped = {name: title for title, names in GROUPS.items() for name in names}
    groups = {title: parser.add_argument_group(title) for title in (*GROUPS, LIMITS)}
    for setting in fields(ServerConfig):
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if is_switch(setting) else {}
        group = groups[grouped.get(setting.name, LIMITS)]
        group.add_argument(flag_name(setting.name), dest=setting.name, help=_help(setting), **switch)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a stop signal; return the exit status."""
    flags = {setting.name: getattr(arguments, setting.name, None) for setting in fields(ServerConfig)}
    try:
        check_environment(os.environ, client_variables())
        file = {} if arguments.config is None else read_file(arguments.config)
        config = read_config(flags, os.environ, file)
        if arguments.print_config:
            print(config_text(config))
            return 0
        _check_there(config.model)
        application = _application(config)
    except ConfigurationError as error:
        print(f"neuron-attribution serve: {error}", file=sys.stderr)
        return _WRONG_USAGE
    return serve(application)


def _application(config: ServerConfig) -> Application:
    configure_logging(config.log_level, config.log_format, call_ids)
    first = [Loading(settings, measured=True) for settings in config.load_settings]
    again = [Loading(settings) for settings in config.load_settings]  # by then batches have told the prices
    return Application(config, worker_pool(config, first, again))


def _check_there(model: str) -> None:
    """Refuse a path where there is nothing, before anything is started."""
    is_path = model.startswith(("/", "./", "../")) or model.endswith(".gguf")
    if is_path and not Path(model).exists():
        raise ConfigurationError(f"--model: there is no {model}; name a folder or a GGUF file that there is")


def _help(setting: Field[Any]) -> str:
    default = "" if setting.default in (MISSING, None) else f", default {setting.default}"
    text = setting.metadata["help"].replace("%", "%%")
    return f"{text} (environment: {environment_name(setting.name)}{default})"
