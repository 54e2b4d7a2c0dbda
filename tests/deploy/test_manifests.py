"""Every overlay, and every component alone and with every other one: schemas, security, and that the parts fit."""

import re
import shutil
from functools import cache
from itertools import combinations
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory

import pytest
from deploy.manifests import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    build,
    build_combination,
    build_overlay,
    needs_kubectl,
)
from deploy.schemas import schema_problems
from deploy.security_checks import security_problems
from deploy.server_checks import configuration, flag_problems, server_problems
from deploy.wiring_checks import wiring_problems

pytestmark = needs_kubectl

DOCUMENT = ROOT / "docs" / "deploying.md"
CHECKS = [schema_problems, security_problems, server_problems, wiring_problems]
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


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("what", COMBINATIONS, ids=name)
def test_nothing_is_wrong(what, check):
    assert list(check(built(what))) == []


def test_every_flag_is_one_of_the_server():
    assert {problem for what in COMBINATIONS for problem in flag_problems(built(what))} == set()


def test_the_documented_overlay_is_sound(tmp_path):
    [example] = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    place = tmp_path / "overlays" / "ours"
    place.mkdir(parents=True)
    for name in ("base", "components"):
        shutil.copytree(KUBERNETES / name, tmp_path / name)
    (place / "kustomization.yaml").write_text(example)
    manifests = build(place)
    assert [problem for check in CHECKS for problem in check(manifests)] == []
    assert manifests.server["image"].startswith("registry.example.com/neuron-attribution:")


def test_the_documented_times_are_those_of_the_manifests():
    manifests = built("cpu-demo")
    config, text = configuration(manifests.server), DOCUMENT.read_text()
    assert f"`--drain-delay`: new calls are still taken | {config.drain_delay:g} |" in text
    assert f"`--grace`: accepted calls finish | up to {config.grace:g} |" in text
    assert f"**{manifests.pod['terminationGracePeriodSeconds']}**" in text
    assert f"`--maximum-connection-age`, {config.maximum_connection_age:g} seconds here" in text


def test_two_autoscalers_are_refused(tmp_path):
    with pytest.raises(CalledProcessError) as caught:
        build_combination(tmp_path, ("hpa", "keda"))
    assert "replicas" in caught.value.stderr
