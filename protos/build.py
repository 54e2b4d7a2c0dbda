"""Hatchling hook: generates the protobuf code into the client package, for editable installs, wheels and sdists."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtobufBuildHook(BuildHookInterface):
    """Runs generate.py."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        runpy.run_path(str(root / "protos" / "generate.py"))["generate"](root)
