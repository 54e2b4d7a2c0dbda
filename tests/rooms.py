"""`python -m rooms`: the rooms of both packages, with their files and lines; what the tests hold them to."""

from __future__ import annotations

from pathlib import PurePosixPath

from checkout import ROOT, tracked_files

FILES = [PurePosixPath(name) for name in tracked_files()]
PACKAGES = CLIENT, SERVER = (
    PurePosixPath("client/neuron_attribution"),
    PurePosixPath("server/neuron_attribution_server"),
)
MOST_FILES = 18
MOST_LINES = 1800


def rooms(package: PurePosixPath) -> set[PurePosixPath]:
    """The packages inside a package, as git knows them."""
    return {path.parent for path in FILES if path.name == "__init__.py" and package in path.parent.parents}


def size(room: PurePosixPath) -> tuple[int, int]:
    """The Python files of a room, without those of the rooms in it, and their lines."""
    files = [path for path in FILES if path.parent == room and path.suffix == ".py"]
    return len(files), sum(len((ROOT / path).read_text().splitlines()) for path in files)


def main() -> None:
    """Print a line for each room, indented as it lies."""
    for package in PACKAGES:
        for room in sorted({package, *rooms(package)}):
            files, lines = size(room)
            indent = "    " * len(room.relative_to(package).parts)
            print(f"{indent}{room.name + '/':{40 - len(indent)}} {files:3} files {lines:6} lines")


if __name__ == "__main__":
    main()
