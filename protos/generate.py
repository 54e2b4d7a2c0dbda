"""Generates the protobuf code into the client package: `python protos/generate.py`, or the build hook beside it."""

import sys
from importlib.resources import files
from pathlib import Path


def generate(root: Path) -> None:
    """Run grpcio-tools, pinned in pyproject.toml to the oldest supported version, on the checkout at `root`."""
    from grpc_tools import protoc

    protos = root / "protos"
    output = root / "client"
    sources = [str(path) for path in sorted(protos.rglob("*.proto"))]
    includes = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc failed")
    package = output / "neuron_attribution" / "v1" / "__init__.py"
    package.write_text('"""Generated from protos/neuron_attribution/v1."""\n')


if __name__ == "__main__":
    generate(Path(__file__).resolve().parents[1])
