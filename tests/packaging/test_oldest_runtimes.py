"""The generated code, the client and the front end run with the oldest gRPC and protobuf, and with the newest.

Everything else is tested with the versions of constraints.txt.
"""

import os
import subprocess
from contextlib import contextmanager

import pytest
from checkout import PROJECT, ROOT, install, oldest, run
from neuron_attribution import Client
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import PROMPT, FakeEngine
from service.servers import listening_address, running_server

WORKERS_OWN = {"accelerate", "gguf", "pip", "safetensors", "sentencepiece", "torch", "tqdm", "transformers"}
"""What only the process with the model imports."""
CALL = """
import sys
from neuron_attribution import Client
with Client(sys.argv[1]) as client:
    print(client.attribute(sys.argv[2]).explanations[0].target.token.text)
"""
SERVE = """
import asyncio
from neuron_attribution_server.app import Application
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import FakeEngine
config = ServerConfig(model="fake", listen="localhost:0")
raise SystemExit(asyncio.run(Application(config, ThreadWorker(FakeEngine())).run()))
"""
VERSIONS = """
from importlib.metadata import version
print(version("grpcio"), version("protobuf"))
"""
STRICT = ("-W", "error")


@pytest.fixture(scope="module")
def python(releases, oldest_environment):
    """Python with the wheel, and the oldest versions of what client and front end import."""
    path = oldest_environment / "bin" / "python"
    server = oldest(PROJECT["optional-dependencies"]["server"])
    tokenizers = server.pop("tokenizers")
    front_end = [requirement for name, requirement in server.items() if name not in WORKERS_OWN]
    install(path, *front_end, releases[0].wheel)
    install(path, "--no-deps", tokenizers)  # what it depends on is for downloads
    name_only(server["torch"], next(oldest_environment.glob("lib/*/site-packages")))
    return path


def test_the_oldest_versions_are_what_the_project_says(python):
    assert run(python, "-c", VERSIONS).split() == ["1.76.0", "6.31.1"]


def test_the_oldest_client_calls_the_newest_server(python):
    with running_server(ThreadWorker(FakeEngine())) as server:
        assert server.loaded.wait(30)
        expected = server.attribute().explanations[0].target.token.text
        assert run(python, *STRICT, "-c", CALL, server.address, PROMPT).rstrip("\n") == expected


def test_the_oldest_server_answers_oldest_and_newest_clients(python):
    with oldest_server(python) as address, Client(address) as client:
        expected = client.attribute(PROMPT).explanations[0].target.token.text
        assert run(python, *STRICT, "-c", CALL, address, PROMPT).rstrip("\n") == expected


def name_only(requirement, site):
    """Make a package's version known, without the package: the front end tells it and does not import it."""
    name, _, version = requirement.partition("==")
    information = site / f"{name}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@contextmanager
def oldest_server(python):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [str(python), *STRICT, "-c", SERVE]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = listening_address(process)
            assert process.stdout.readline().startswith("ready: ")
            yield address
        finally:
            process.terminate()
