"""`make release`: the same bytes anywhere, nothing that does not belong, and true papers."""

import hashlib
import json
import os
import tarfile
import zipfile
from datetime import UTC, datetime
from email import message_from_bytes
from importlib.metadata import distributions

from checkout import BIN, EPOCH, PROJECT, ROOT, UNCOMPILED, digest, make_release, run, tracked_files
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

GENERATED = {
    "client/neuron_attribution/v1/__init__.py",
    "client/neuron_attribution/v1/neuron_attribution_pb2.py",
    "client/neuron_attribution/v1/neuron_attribution_pb2.pyi",
    "client/neuron_attribution/v1/neuron_attribution_pb2_grpc.py",
}
NEEDED = {Requirement(line).name for line in PROJECT["dependencies"]}
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_same_commit_gives_the_same_bytes(releases):
    first, second = ({path.name: digest(path) for path in release.folder.iterdir()} for release in releases)
    assert first == second
    assert len(first) == 4


def test_everything_bears_the_time_of_the_commit(releases):
    time = datetime.fromtimestamp(EPOCH, UTC)
    with zipfile.ZipFile(releases[0].wheel) as wheel, tarfile.open(releases[0].sdist) as sdist:
        assert {file.date_time for file in wheel.infolist()} == {time.timetuple()[:6]}
        assert {file.mtime for file in sdist} == {EPOCH}
    assert bill(releases[0])["metadata"]["timestamp"] == time.isoformat()


def test_the_sdist_is_the_repository_and_the_generated_code(releases):
    for release in releases:
        with tarfile.open(release.sdist) as sdist:
            names = {file.name.partition("/")[2] for file in sdist}
        assert names == {*tracked_files(), *GENERATED, "PKG-INFO"}


def test_the_wheel_from_the_tree_is_the_wheel_from_the_sdist(releases, tmp_path):
    environment = os.environ | UNCOMPILED | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    run(BIN / "python", "-m", "build", "--wheel", "--outdir", tmp_path, releases[0].tree, env=environment)
    assert digest(next(tmp_path.iterdir())) == digest(releases[0].wheel)


def test_the_packages_pass_the_strict_check_of_the_index(releases):
    assert releases[0].output.count("PASSED") == 2
    assert "WARNING" not in run(BIN / "twine", "check", "--strict", releases[0].sdist, releases[0].wheel)


def test_the_checksums_are_those_of_all_files(releases):
    folder = releases[0].folder
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: value for value, name in (line.split("  ") for line in lines)}
    assert listed == {path.name: digest(path) for path in folder.iterdir() if path.name != "SHA256SUMS"}


def test_the_license_is_apache_2_and_declared(releases):
    assert digest(ROOT / "LICENSE") == APACHE_2
    with zipfile.ZipFile(releases[0].wheel) as wheel:
        folder = f"neuron_attribution-{PROJECT['version']}.dist-info"
        metadata = message_from_bytes(wheel.read(f"{folder}/METADATA"))
        shipped = wheel.read(f"{folder}/licenses/LICENSE")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert hashlib.sha256(shipped).hexdigest() == APACHE_2


def test_a_tag_that_does_not_name_the_version_is_no_release(tmp_path):
    make = make_release(ROOT, tmp_path, TAG="v99.0")
    assert "v99.0 does not name the version" in make.communicate()[0]
    assert make.returncode != 0


def test_the_bill_of_materials_is_valid(releases):
    text = (releases[0].folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_bill_of_materials_lists_what_is_installed_beside_the_project(releases, oldest_environment):
    listed = {(part["name"], part["version"]) for part in bill(releases[0])["components"]}
    site = next(oldest_environment.glob("lib/*/site-packages"))
    assert listed <= {(package.metadata["Name"], package.version) for package in distributions(path=[str(site)])}
    assert {name for name, _ in listed} > NEEDED


def test_the_bill_of_materials_is_that_of_the_project(releases):
    content = bill(releases[0])
    project = content["metadata"]["component"]
    assert (project["name"], project["version"]) == ("neuron-attribution", PROJECT["version"])
    assert project["licenses"] == [{"license": {"id": "Apache-2.0", "acknowledgement": "declared"}}]
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in content["dependencies"]}
    assert {reference.partition("==")[0] for reference in needs[project["bom-ref"]]} >= NEEDED


def bill(release):
    return json.loads((release.folder / "sbom.cdx.json").read_text())
