"""Hatchling hook: generates the protobuf code into the client package, for editable installs, wheels and sdists."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtobufBuildHook(BuildHookInterface):
    """Runs grpcio-tools, pinned in pyproject.toml to the oldest supported version."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        from grpc_tools import protoc

        protos = Path(self.root, "protos")
        output = f"{self.root}/client"
        sources = [str(path) for path in sorted(protos.rglob("*.proto"))]
        includes = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
        outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
            sys.exit("protoc failed")
        package = Path(output, "neuron_attribution", "v1", "__init__.py")
        package.write_text('"""Generated from protos/neuron_attribution/v1."""\n')
