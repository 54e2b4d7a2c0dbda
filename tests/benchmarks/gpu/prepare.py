"""Makes a Python that has torch ready for the tests and the benchmark of a GPU, without a network.

    python prepare.py FOLDER [WHEELS]

What this Python lacks, or has too old, is installed from the wheels in WHEELS into FOLDER, which goes first on
PYTHONPATH. Missing protobuf code is generated. What still lacks is named, with what helps, and the exit status is 1.
"""

import importlib
import os
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
IMPORTED = (
    *("grpcio", "protobuf", "googleapis-common-protos", "numpy", "rich"),
    *("torch", "transformers", "tokenizers", "safetensors", "accelerate", "tqdm", "psutil", "pytest"),
)
"""What the engine, the tests of a GPU and the benchmark import; nothing of the server's front end."""
GENERATOR = "grpcio-tools"
"""It runs once and alone: what it asks for itself does not matter."""
GENERATED = ROOT / "client" / "neuron_attribution" / "v1" / "neuron_attribution_pb2.py"


def main(folder, wheels=None):
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        return _fail(f"{sys.executable} has no pip; `{sys.executable} -m ensurepip` adds it")
    target = Path(folder).resolve()
    sys.path.insert(0, str(target))
    needed = [Requirement(line) for line in _needed()]
    unmet = [each for each in needed if not _is_met(each)]
    while unmet and wheels:
        added = [each for each in unmet if _install(each, target, wheels)]
        importlib.invalidate_caches()
        runs = [each.name for each in added if each.name != GENERATOR]
        needed += [Requirement(line) for name in runs for line in metadata.requires(name) or ()]
        left = [each for each in needed if _applies(each) and not _is_met(each)]
        if not added or left == unmet:
            break
        unmet = left
    if unmet:
        return _fail(_remedy(unmet, wheels))
    if not GENERATED.is_file():
        path = os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            [sys.executable, ROOT / "protos" / "generate.py"], env=os.environ | {"PYTHONPATH": path}, check=True
        )
    return 0


def _needed():
    """The lines of pyproject.toml for what is imported."""
    from pip._vendor.packaging.requirements import Requirement

    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [described["project"]["dependencies"], *described["project"]["optional-dependencies"].values()]
    if not GENERATED.is_file():
        groups.append(described["build-system"]["requires"])
    return sorted({line for group in groups for line in group if Requirement(line).name in {*IMPORTED, GENERATOR}})


def _applies(requirement):
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _is_met(requirement):
    return requirement.specifier.contains(_version(requirement.name) or "0", prereleases=True)


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _install(requirement, target, wheels):
    """Whether the wheels have it. Alone: pip would fetch what this Python already has into the folder, too."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--upgrade", "--target", target, "--find-links", wheels]
    return subprocess.run([*command, f"{requirement.name}{requirement.specifier}"], check=False).returncode == 0


def _remedy(unmet, wheels):
    names = [f"{each.name}{each.specifier}" for each in unmet]
    found = [f"  {name} (here: {_version(each.name) or 'none'})" for name, each in zip(names, unmet, strict=True)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fetch = ["python3", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", version]
    fetch += [
        "--implementation",
        "cp",
        "--platform",
        "manylinux_2_28_x86_64",
        "--platform",
        "manylinux_2_17_x86_64",
        "--dest",
        "wheels",
        *names,
    ]
    where = f"neither {sys.executable} nor {wheels} has" if wheels else f"{sys.executable} lacks"
    return "\n".join(
        [
            f"{where} what is needed:",
            *found,
            "Fetch the wheels where there is a network, bring the folder, and name it: make gpu WHEELS=wheels",
            "  " + shlex.join(fetch),
        ]
    )


def _fail(text):
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
