"""Two releases of the same commit, and an environment with the oldest runtimes, made once for all tests."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkout import PROJECT, commit_of_all, environment_with, make_release, oldest

RUBBISH = (
    ".venv/lib/module.py",
    ".mypy_cache/cache.json",
    "client/neuron_attribution/__pycache__/client.cpython-311.pyc",
    "dist/neuron_attribution-0.0.1.tar.gz",
    "notes.md",
    "secret.pem",
    "server/neuron_attribution_server.egg-info/PKG-INFO",
    "tests/.hypothesis/examples",
)


@dataclass(frozen=True)
class Release:
    """A source tree, and what `make release` said and made of it."""

    tree: Path
    output: str

    @property
    def folder(self):
        return self.tree / "dist"

    @property
    def sdist(self):
        return next(self.folder.glob("*.tar.gz"))

    @property
    def wheel(self):
        return next(self.folder.glob("*.whl"))


@pytest.fixture(scope="session")
def oldest_environment(tmp_path_factory):
    """An environment with the oldest versions of what the client depends on."""
    folder = tmp_path_factory.mktemp("oldest")
    environment_with(folder, *oldest(PROJECT["dependencies"]).values())
    return folder


@pytest.fixture(scope="session")
def releases(tmp_path_factory, oldest_environment):
    """One as it comes; one from a tree with rubbish, elsewhere, in another time zone, by a user who shares nothing."""
    here, there = (commit_of_all(tmp_path_factory.mktemp(name)) for name in ("here", "there"))
    litter(there)
    makes = make_release(here, oldest_environment), make_release(there, oldest_environment, 0o077, TZ="Asia/Tokyo")
    outputs = [make.communicate()[0] for make in makes]
    assert [make.returncode for make in makes] == [0, 0], "\n".join(outputs)
    return Release(here, outputs[0]), Release(there, outputs[1])


def litter(tree):
    """Add what does not belong into packages, and make every file old and private."""
    for name in RUBBISH:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("rubbish\n")
    for path in tree.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, (1, 1))
            path.chmod(path.stat().st_mode & ~0o077)
