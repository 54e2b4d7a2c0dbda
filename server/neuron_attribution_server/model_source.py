"""Where a model comes from: the demo, a folder, a GGUF file or the Hub; its name and its revision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

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

    def revision(self, model: PreTrainedModel) -> str:
        """The Hub's commit, or the first 12 digits of the SHA-256 of the model's files."""
        commit = getattr(model.config, "_commit_hash", None)
        if commit:
            return str(commit)
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
    return ModelSource(settings.model, settings.model, {"revision": settings.revision} if settings.revision else {})


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:12]}"
