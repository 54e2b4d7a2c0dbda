"""What the container image holds, built once."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from deploy.dockerfile import copy_context, read_stages
from deploy.sandbox import Sandbox

PIP = {"PIP_COMPILE": "0", "PIP_RETRIES": "2"}
IMPORT = "import transformers.models.llama.modeling_llama, neuron_attribution_server.model.process.main"
"""What a server with the demo model imports."""


@dataclass(frozen=True)
class Image:
    """The virtual environment that the final stage has in /opt/venv, and what that stage says of itself."""

    environment_folder: Path
    variables: dict
    entrypoint: list
    user: int


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """What the Dockerfile's commands make, run as they stand in it.

    Of what pip installs only what a server imports is compiled, and an index out of reach is not tried for long.
    """
    build, final = read_stages()
    folders = {name: tmp_path_factory.mktemp(name) for name in ("source", "dist", "venv")}
    copy_context(folders["source"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The host's variables say how pip reaches a package index here, but PYTHONPATH would hide what is built.
    left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    host = {name: value for name, value in os.environ.items() if name not in left_out}
    sandbox = Sandbox(
        writable={"/source": folders["source"], "/dist": folders["dist"], "/opt/venv": folders["venv"]},
        user=0,
        environment={**host, **PIP, **build.values("ARG"), **build.values("ENV"), "PATH": path},
        read_only_root=False,
    )
    for command in build.texts("RUN"):
        sandbox.run("sh", "-c", f"cd {build.text('WORKDIR')} && {command}")
    sandbox.run("/opt/venv/bin/python", "-c", IMPORT)
    variables = {name: value.replace("$PATH", "/usr/bin:/bin") for name, value in final.values("ENV").items()}
    user = int(final.text("USER").partition(":")[0])
    yield Image(folders["venv"], variables, final.entrypoint, user)
    shutil.rmtree(folders["venv"])  # more than a gigabyte, which pytest would keep
