"""The `serve` command: its options, and running the server until it is stopped."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from neuron_attribution.cli.main import client_variables

from neuron_attribution_server.app import Application
from neuron_attribution_server.front_end.calls.calls import call_ids
from neuron_attribution_server.front_end.workers.pool import worker_pool
from neuron_attribution_server.model.process.main import Loading
from neuron_attribution_server.server_process import serve
from neuron_attribution_server.settings.arguments import add_setting_arguments
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig, read_config
from neuron_attribution_server.settings.config_file import config_text, read_file
from neuron_attribution_server.settings.environment import check_environment
from neuron_attribution_server.settings.logs import configure_logging

_WRONG_USAGE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options, and one for every setting."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, which variables and flags overrule")
    parser.add_argument("--print-config", action="store_true", help="print all settings as such a file, and end")
    add_setting_arguments(parser)


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
