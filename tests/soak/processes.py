"""What the server's processes hold, read from /proc."""

from __future__ import annotations

from pathlib import Path


def family(pid: int) -> list[int]:
    """A process and its descendants, the process itself first."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]
    return [pid, *(one for child in children for one in family(child))]


def resident_bytes(pid: int) -> int:
    """Resident memory; 0 where the process has ended."""
    return _status_bytes(pid, "VmRSS")


def anonymous_bytes(pid: int) -> int:
    """The resident memory that the process has allocated; the rest is files it maps, such as the weights."""
    return _status_bytes(pid, "RssAnon")


def _status_bytes(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def open_files(pid: int) -> int:
    """Open file descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
