"""Commands in a file system of their own, by bubblewrap: the host's, read-only, with other folders in some places."""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest


def _works():
    if shutil.which("bwrap") is None:
        return False
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_sandbox = pytest.mark.skipif(
    not _works(), reason="bubblewrap (Debian's package has it) is missing or may not make user namespaces here"
)


@dataclass(frozen=True)
class Sandbox:
    """Folders of the host by where they are seen, writable or not; who runs there, and with which variables."""

    writable: dict
    user: int
    environment: dict
    readable: dict = field(default_factory=dict)
    read_only_root: bool = True

    def command(self, *command):
        """The command that runs another one in it, as its first process, without any privilege."""
        identity = ("--unshare-user", "--uid", str(self.user), "--gid", str(self.user))
        process = ("--unshare-pid", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
        variables = [part for pair in self.environment.items() for part in ("--setenv", *pair)]
        return ["bwrap", *identity, *process, "--clearenv", *variables, *self._mounts(), *command]

    def run(self, *command):
        """Run a command to its end; AssertionError with its output where it fails."""
        finished = subprocess.run(self.command(*command), capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def _mounts(self):
        places = [*self.writable, *self.readable]
        tops = {Path(place).parts[1] for place in places} - {"tmp"}
        options = ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        for child in sorted(Path("/").iterdir()):
            if child.name in tops and child.is_dir():
                for grandchild in sorted(child.iterdir()):
                    options += _as_it_is(grandchild)
            elif child.name not in ("dev", "proc", "tmp"):
                options += _as_it_is(child)
        for place, folder in sorted({**self.writable, **self.readable}.items()):
            options += ["--bind" if place in self.writable else "--ro-bind", str(folder), place]
        if self.read_only_root:
            options += ["--remount-ro", "/"]
        return options


def _as_it_is(path):
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)]
