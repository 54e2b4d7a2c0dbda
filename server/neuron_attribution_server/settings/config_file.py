"""The configuration as a TOML file: the settings' own names, and values as a flag or a variable has them."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig


def read_file(path: str) -> Mapping[str, str]:
    """The texts of a file's settings, by name. Raises ConfigurationError, which says what was meant perhaps."""
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"--config: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config: {path} is not TOML: {error}") from None
    names = [setting.name for setting in fields(ServerConfig)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name.replace("-", "_"), names, 1)
            hint = f"did you mean {near[0]}?" if near else "serve --help has them all"
            raise ConfigurationError(f"--config: {path} sets {name}, which is no setting; {hint}")
    return {name: _text(path, name, value) for name, value in values.items()}


def config_text(config: ServerConfig) -> str:
    """A file that sets everything as it is; what is not set stands in a comment."""
    return "\n".join(
        f"# {name} is not set" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in asdict(config).items()
    )


def _text(path: str, name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigurationError(f"--config: {path} sets {name} to {value!r}; give a text, a number, true or false")
