"""The container image: its Dockerfile, and what its commands make. It is linted and its parts are run, never built."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deploy.dockerfile import DOCKERFILE, copy_context, read_stages
from deploy.manifests import ROOT, build_overlay, needs_kubectl
from deploy.sandbox import Sandbox, needs_sandbox

BUILD, FINAL = read_stages()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def lint(text):
    hadolint = Path(sys.executable).with_name("hadolint")
    return subprocess.run([hadolint, "-"], input=text, capture_output=True, text=True, check=False)


def test_the_dockerfile_passes_the_standard_lint():
    finished = lint(DOCKERFILE.read_text())
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (":3.11.15-slim-bookworm AS", ":latest AS", "DL3007"),
        ('["neuron-attribution", "serve"]', "neuron-attribution serve", "DL3025"),
        ("WORKDIR /source", "WORKDIR source", "DL3000"),
    ],
)
def test_the_lint_finds_mistakes(old, new, rule):
    text = DOCKERFILE.read_text()
    assert old in text
    assert rule in lint(text.replace(old, new)).stdout


def test_both_stages_start_from_the_same_exact_version():
    bases = {stage.text("FROM").partition(" AS ")[0] for stage in (BUILD, FINAL)}
    [base] = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert FINAL.values("LABEL")["org.opencontainers.image.base.name"] == f"docker.io/library/{base}"


def test_the_version_is_the_projects():
    assert FINAL.values("ARG")["VERSION"] == VERSION
    assert set(re.findall(r"neuron-attribution:([\d.]+)", DOCKERFILE.read_text())) == {VERSION}


def test_the_final_stage_only_takes_the_environment_and_installs_nothing():
    assert FINAL.texts("COPY") == ["--from=build /opt/venv /opt/venv"]
    assert not re.search(r"\b(pip|apt-get)\b", " ".join(FINAL.texts("RUN")))
    assert FINAL.text("STOPSIGNAL") == "SIGTERM"


@needs_kubectl
@pytest.mark.parametrize("overlay", ["cpu-demo", "gpu"])
def test_the_manifests_run_this_image(overlay):
    manifests = build_overlay(overlay)
    security, container = manifests.pod["securityContext"], manifests.server
    assert FINAL.text("USER") == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert FINAL.text("EXPOSE").split() == [str(port["containerPort"]) for port in container["ports"]]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(re.findall(r'"(.*?)"', FINAL.text("VOLUME"))) <= mounted
    name, _, tag = container["image"].rpartition(":")
    assert name == "neuron-attribution"
    assert tag.partition("-")[0] == VERSION
    assert f"--tag {container['image']}" in DOCKERFILE.read_text(), "the Dockerfile says how to build it"
    assert manifests.deployment["metadata"]["labels"]["app.kubernetes.io/version"] == VERSION


def test_the_context_has_the_sources_and_nothing_that_was_made_from_them(tmp_path):
    copy_context(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {"constraints.txt", "pyproject.toml", "README.md", "protos/build.py", "client/neuron_attribution"} <= found
    assert not [path for path in found if "__pycache__" in path or path.startswith(("tests", ".venv", ".git"))]
    assert "client/neuron_attribution/v1" not in found


@needs_sandbox
def test_the_commands_make_an_environment_that_runs(image):
    """The build stage ends with `pip check`; what it leaves must run where the final stage puts it."""
    sandbox = Sandbox(
        writable={}, readable={"/opt/venv": image.environment_folder}, user=image.user, environment=image.variables
    )
    assert "--model" in sandbox.run(*image.entrypoint, "--help")
    assert sandbox.run("neuron-attribution", "--version").split()[-1] == VERSION
