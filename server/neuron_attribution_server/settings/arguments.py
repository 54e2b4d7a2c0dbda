"""Settings as options of a command line. Their values stay texts: flags, environment and file are read alike, later."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, fields
from typing import Any

from neuron_attribution_server.settings.config import GROUPS, ServerConfig, environment_name, flag_name, is_switch

MODEL = next(iter(GROUPS))
LIMITS = "limits"


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting, in groups."""
    grouped = {name: title for title, names in GROUPS.items() for name in names}
    groups = {title: parser.add_argument_group(title) for title in (*GROUPS, LIMITS)}
    for setting in fields(ServerConfig):
        _add(groups[grouped.get(setting.name, LIMITS)], setting)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is loaded."""
    group = parser.add_argument_group("how --check loads it")
    for setting in fields(ServerConfig):
        if setting.name in loading_settings():
            _add(group, setting)


def loading_settings() -> frozenset[str]:
    """The names of the settings that say how a model is loaded, but for the model itself."""
    return frozenset(GROUPS[MODEL]) - {"model"}


def _add(group: argparse._ArgumentGroup, setting: Field[Any]) -> None:
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if is_switch(setting) else {}
    group.add_argument(flag_name(setting.name), dest=setting.name, help=_help(setting), **switch)


def _help(setting: Field[Any]) -> str:
    default = "" if setting.default in (MISSING, None) else f", default {setting.default}"
    text = setting.metadata["help"].replace("%", "%%")
    return f"{text} (environment: {environment_name(setting.name)}{default})"
