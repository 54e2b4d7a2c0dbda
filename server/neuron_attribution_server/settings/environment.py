"""Environment variables nobody reads: a misspelt one would change nothing, in silence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import fields

from neuron_attribution_server.settings.config import (
    ENVIRONMENT_PREFIX,
    ConfigurationError,
    ServerConfig,
    environment_name,
)

# What Kubernetes sets in every pod for each service of its namespace; ours has our name.
_SERVICE_LINK = re.compile(
    rf"{ENVIRONMENT_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def check_environment(environment: Mapping[str, str], client_variables: Collection[str]) -> None:
    """Raise ConfigurationError for a variable with our prefix that neither the server nor the client reads."""
    known = {environment_name(setting.name) for setting in fields(ServerConfig)} | set(client_variables)
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        nearest = _nearest(name, known)
        hint = f"did you mean {nearest}?" if nearest else "see neuron-attribution serve --help"
        raise ConfigurationError(f"the environment variable {name} means nothing here; unset it ({hint})")


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The known name most like this one. What they all begin with counts for nothing."""
    endings = sorted(each.removeprefix(ENVIRONMENT_PREFIX) for each in known)
    nearest = difflib.get_close_matches(name.removeprefix(ENVIRONMENT_PREFIX), endings, n=1)
    return ENVIRONMENT_PREFIX + nearest[0] if nearest else None
