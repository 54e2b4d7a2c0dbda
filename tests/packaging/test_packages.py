"""What is built and installed: the wheel, the thin client in an environment of its own, the protocol's lint."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from neuron_attribution_server.thread_worker import ThreadWorker
from service.fakes import PROMPT, FakeEngine
from service.servers import running_server

ROOT = Path(__file__).parents[2]
CALL = """
import importlib.util, sys
assert importlib.util.find_spec("torch") is None
from neuron_attribution import Client
with Client(sys.argv[1]) as client:
    print(client.attribute(sys.argv[2]).explanations[0].target.token.text)
"""


def run(*command):
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_both_packages_the_generated_code_and_the_type_markers(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "neuron_attribution/py.typed",
        "neuron_attribution/v1/neuron_attribution_pb2.py",
        "neuron_attribution/v1/neuron_attribution_pb2.pyi",
        "neuron_attribution/v1/neuron_attribution_pb2_grpc.py",
        "neuron_attribution_server/py.typed",
        "neuron_attribution_server/engine.py",
    ):
        assert name in names
    packages = {"neuron_attribution", "neuron_attribution_server"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == packages


def test_the_wheel_alone_is_a_client_without_torch(wheel, tmp_path):
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    with running_server(ThreadWorker(FakeEngine())) as server:
        assert server.loaded.wait(30)
        expected = server.attribute().explanations[0].target.token.text
        assert run(python, "-c", CALL, server.address, PROMPT).rstrip("\n") == expected


def test_the_protocol_passes_the_standard_lint():
    run(Path(sys.executable).with_name("buf"), "lint", ROOT / "protos")
