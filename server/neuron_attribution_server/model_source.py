"""Where a model comes from: the demo, a folder, a GGUF file or the Hub; its name and its revision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from neuron_attribution_server.config import LoadSettings
from neuron_attribution_server.demo import NAME as DEMO_NAME
from neuron_attribution_server.demo import demo_folder

_HASHED = ("*.safetensors", "*.json", "*.gguf")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What `from_pretrained` is given, and the model's name."""

    name: str
    location: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def revision(self) -> str:
        """The Hub's commit, or the first 12 digits of the SHA-256 of the model's files."""
        if "revision" in self.arguments:
            return str(self.arguments["revision"])
        folder = Path(self.location)
        named = self.arguments.get("gguf_file")
        files = [folder / named] if named else sorted(path for kind in _HASHED for path in folder.glob(kind))
        return _digest(files)


def model_source(settings: LoadSettings) -> ModelSource:
    """Read the `--model` setting."""
    if settings.model == "demo":
        return ModelSource(DEMO_NAME, str(demo_folder()))
    path = Path(settings.model)
    if path.is_file():
        return ModelSource(path.stem, str(path.parent), {"gguf_file": path.name})
    if path.is_dir():
        return ModelSource(path.resolve().name, str(path))
    if settings.model.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"--model {settings.model}: there is no such folder or file")
    return ModelSource(settings.model, settings.model, {"revision": _commit(settings.model, settings.revision)})


def _commit(model_id: str, revision: str | None) -> str:
    """The commit that a revision is at now: model and tokenizer come from it, whatever is pushed meanwhile.

    Raises OSError where the Hub has no such model or revision.
    """
    config = cached_file(model_id, "config.json", revision=revision or "main")
    assert config is not None  # it raises instead
    return Path(config).parent.name


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:12]}"
