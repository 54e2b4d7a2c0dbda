"""This checkout: its files, copies of them, what it depends on, and commands."""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PIN_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2].partition(" ")[0] for line in PIN_LINES}
"""The exact version of every package in constraints.txt, by name."""
UNCOMPILED = {"PIP_COMPILE": "0"}
"""Tells pip to leave compiling to imports: of what is installed for a test, little is imported."""
EPOCH = 1_767_225_600
"""The time of the commit that is released."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, **options):
    """What a command that must succeed prints."""
    finished = attempt(*command, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def attempt(*command, **options):
    """A finished command, successful or not."""
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def tracked_files():
    """The files git knows, as paths from the root; in an unpacked sdist those it would know."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "-z", cwd=ROOT)
    else:
        with TemporaryDirectory() as folder:
            run("git", "init", "--quiet", "--bare", folder)
            everything = ("--work-tree", ROOT, "ls-files", "-z", "--others", "--exclude-standard")
            listed = run("git", "--git-dir", folder, *everything, cwd=ROOT)
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def commit_of_all(folder):
    """A repository of its own in a folder: one commit, made at EPOCH, of all that git knows here."""
    for name in tracked_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    at = os.environ | {"GIT_AUTHOR_DATE": f"@{EPOCH} +0000", "GIT_COMMITTER_DATE": f"@{EPOCH} +0000"}
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    run("git", *who, "commit", "--quiet", "--message", "all", cwd=folder, env=at)
    return folder


def environment_with(folder, *requirements):
    """A virtual environment with packages, by the pip that is here; its Python."""
    venv.create(folder)
    python = folder / "bin" / "python"
    install(python, *requirements)
    return python


def install(python, *words):
    """Install packages for another Python, by the pip that is here."""
    environment = os.environ | UNCOMPILED
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *words, env=environment)


def make_release(tree, served, mask=0o022, **variables):
    """Start `make release` with the tools that are there; `served` stands for an environment with the server."""
    # -o: these are up to date. PYTHON=false: nothing may be installed.
    command = ["make", "release", f"BIN={BIN}", f"SERVER_VENV={served}", "PYTHON=false"]
    command += ["-o", ".venv/release-installed", "-o", f"{served}/server-installed"]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    environment |= UNCOMPILED | variables
    return subprocess.Popen(
        command, cwd=tree, env=environment, umask=mask, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def digest(path):
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def oldest(requirements):
    """The oldest version of each that fits, by name, as a requirement."""
    bounds = map(Requirement, requirements)
    return {bound.name: f"{bound.name}=={_least(bound)}" for bound in bounds}


def _least(bound):
    return next(clause.version for clause in bound.specifier if clause.operator in {">=", "=="})
