"""What is built and installed: the wheel, the thin client in an environment of its own, the protocol's lint."""

import hashlib
import re
import zipfile

from checkout import BIN, ROOT, environment_with, run
from neuron_attribution.report.page import LIBRARIES
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from service.fakes import PROMPT, FakeEngine
from service.servers import running_server

CALL = """
import importlib.util, sys
assert importlib.util.find_spec("torch") is None
from neuron_attribution import Client
with Client(sys.argv[1]) as client:
    print(client.attribute(sys.argv[2]).explanations[0].target.token.text)
"""


def test_the_wheel_holds_both_packages_the_generated_code_the_type_markers_and_the_license(releases):
    names = set(zipfile.ZipFile(releases[0].wheel).namelist())
    for name in (
        "neuron_attribution/py.typed",
        "neuron_attribution/report/assets/page.html",
        "neuron_attribution/report/vendor/d3.LICENSE",
        "neuron_attribution/v1/neuron_attribution_pb2.py",
        "neuron_attribution/v1/neuron_attribution_pb2.pyi",
        "neuron_attribution/v1/neuron_attribution_pb2_grpc.py",
        "neuron_attribution_server/py.typed",
        "neuron_attribution_server/model/engine/engine.py",
        "neuron_attribution-0.1.0.dist-info/licenses/LICENSE",
    ):
        assert name in names
    packages = {"neuron_attribution", "neuron_attribution_server"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == packages


def test_the_vendored_libraries_are_what_their_page_says():
    folder = ROOT / "client" / "neuron_attribution" / "report" / "vendor"
    named = dict(re.findall(r"^\| (\S+) \|.* ([0-9a-f]{64}) \|$", (folder / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}
    assert set(named) == set(LIBRARIES)


def test_the_wheel_alone_is_a_client_without_torch(releases, tmp_path):
    python = environment_with(tmp_path, "--constraint", ROOT / "constraints.txt", releases[0].wheel)
    with running_server(ThreadWorker(FakeEngine())) as server:
        assert server.loaded.wait(30)
        expected = server.attribute().explanations[0].target.token.text
        assert run(python, "-c", CALL, server.address, PROMPT).rstrip("\n") == expected


def test_the_protocol_passes_the_standard_lint():
    run(BIN / "buf", "lint", ROOT / "protos")
