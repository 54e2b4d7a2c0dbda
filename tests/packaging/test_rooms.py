"""The rooms of the packages: each says at its door what it is for, none is too large, and a tree shows them all."""

import ast
import re
from pathlib import PurePosixPath

import pytest
from checkout import ROOT
from rooms import CLIENT, FILES, MOST_FILES, MOST_LINES, PACKAGES, SERVER, rooms, size

DOORS = [
    path
    for path in FILES
    if path.name == "__init__.py" and path.parent not in PACKAGES and any(map(path.is_relative_to, PACKAGES))
]
INTERFACES = {CLIENT / "convert", CLIENT / "plots", CLIENT / "report", CLIENT / "traces"}
"""Rooms whose door names what others may use."""


def tree():
    """What the tree names, as paths: the first column of each line, below the folder it is indented under."""
    (text,) = re.findall(
        r"^```text\n(protos/.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )
    above = []
    for line in filter(None, text.splitlines()):
        indent = len(line) - len(line.lstrip())
        if indent % 4 or indent // 4 > len(above):
            continue  # a description goes on
        del above[indent // 4 :]
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        yield from ("/".join((*above, name)) for name in names)
        above.append(names[0].rstrip("/"))


def test_the_tree_names_exactly_the_rooms_that_exist():
    named = {PurePosixPath(name) for name in tree() if name.endswith("/")}
    assert len(rooms(SERVER)) > 20
    for package in PACKAGES:
        assert {room for room in named if package in room.parents} == rooms(package)


def test_everything_that_the_tree_names_exists():
    assert len(list(tree())) > 40
    for name in tree():
        path = ROOT / name
        assert path.is_dir() if name.endswith("/") else path.with_suffix(".py").is_file(), name


@pytest.mark.parametrize("door", DOORS, ids=[str(path.parent) for path in DOORS])
def test_a_room_says_at_its_door_what_it_is_for(door):
    module = ast.parse((ROOT / door).read_text())
    assert len(module.body) == 1 or door.parent in INTERFACES
    said = ast.get_docstring(module)
    assert said is not None
    assert re.search(r"\bMay import\b", said)


@pytest.mark.parametrize("room", sorted(room for package in PACKAGES for room in (package, *rooms(package))), ids=str)
def test_no_room_is_too_large(room):
    files, lines = size(room)
    assert files <= MOST_FILES
    assert lines <= MOST_LINES


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_every_python_file_lies_in_a_room(package):
    held = {path.parent for path in FILES if package in path.parents and path.suffix == ".py"}
    assert held == rooms(package) | {package}
