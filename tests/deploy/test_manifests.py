"""Every overlay, and every component alone and with every other one: schemas, security, and that the parts fit."""

from functools import cache
from itertools import combinations
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory

import pytest
from deploy.manifests import COMPONENTS, OVERLAYS, build_combination, build_overlay, needs_kubectl
from deploy.schemas import schema_problems
from deploy.security_checks import security_problems
from deploy.server_checks import flag_problems, server_problems
from deploy.wiring_checks import wiring_problems

pytestmark = needs_kubectl

ALTERNATIVES = {"hpa", "keda"}
WITHOUT = [("hpa",), ("keda",)]


def is_possible(components):
    needs_tls = "client-certificates" in components and "tls" not in components
    return not needs_tls and not set(components) >= ALTERNATIVES


SOME = [(), *((each,) for each in COMPONENTS), *combinations(COMPONENTS, 2), ("client-certificates", "tls")]
COMBINATIONS = [
    *OVERLAYS,
    *filter(is_possible, dict.fromkeys(tuple(sorted(some)) for some in SOME)),
    *(tuple(name for name in COMPONENTS if name not in without) for without in WITHOUT),
    *(tuple(name for name in reversed(COMPONENTS) if name not in without) for without in WITHOUT),
]


@cache
def built(what):
    """An overlay by name, or the base with components."""
    if isinstance(what, str):
        return build_overlay(what)
    with TemporaryDirectory() as folder:
        return build_combination(Path(folder), what)


def name(what):
    return what if isinstance(what, str) else "+".join(("base", *what))


@pytest.mark.parametrize("check", [schema_problems, security_problems, server_problems, wiring_problems])
@pytest.mark.parametrize("what", COMBINATIONS, ids=name)
def test_nothing_is_wrong(what, check):
    assert list(check(built(what))) == []


def test_every_flag_is_one_of_the_server():
    assert {problem for what in COMBINATIONS for problem in flag_problems(built(what))} == set()


def test_two_autoscalers_are_refused(tmp_path):
    with pytest.raises(CalledProcessError) as caught:
        build_combination(tmp_path, ("hpa", "keda"))
    assert "replicas" in caught.value.stderr
