"""Server processes whose engines wait at a gate, and whose answers tell which of them gave it."""

import os
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from service.servers import listening_address, server_process


@dataclass(frozen=True)
class GatedServer:
    """A server process; its name is the revision of the model in its answers."""

    name: str
    process: subprocess.Popen
    address: str
    gate: Path

    def hold(self):
        """Let no batch end until `release`."""
        self.gate.unlink()

    def release(self):
        self.gate.touch()


@contextmanager
def gated_servers(folder, *names, **settings):
    """Servers of these names, ready, with open gates."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(folder / name, settings)) for name in names]
        yield [_ready(folder / name, process) for name, process in zip(names, processes, strict=True)]


@contextmanager
def _process(folder, settings):
    folder.mkdir()
    (folder / "open").touch()
    settings = {"cache_bytes": 0, "errors": subprocess.DEVNULL, **settings}
    with (
        patch.dict(os.environ, GATED_ENGINE=str(folder)),
        server_process("make_gated_engine", module="faulty_engines", **settings) as process,
    ):
        yield process


def _ready(folder, process):
    address = listening_address(process)
    assert process.stdout.readline().startswith("ready: ")
    return GatedServer(folder.name, process, address, folder / "open")
