"""Where a model comes from: the demo, a folder, a GGUF file or the Hub; its name and its revision."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuron_attribution.errors import FailedPreconditionError
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from neuron_attribution_server.model.loading.sources.demo import NAME as DEMO_NAME
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from neuron_attribution_server.model.loading.sources.model_files import check_files, check_kind, status_of
from neuron_attribution_server.settings.config import LoadSettings

_HASHED = ("*.safetensors", "*.json", "*.gguf")
_PICKLED = "*.bin"
"""Weights where there are no others."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What `from_pretrained` is given, and the model's name."""

    name: str
    location: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def gguf_file(self) -> str | None:
        """The name of the GGUF file in the folder `location`, where the model is one."""
        return self.arguments.get("gguf_file")

    @property
    def path(self) -> str:
        """The folder, the GGUF file or the Hub's id, for people."""
        return self.location if self.gguf_file is None else str(Path(self.location) / self.gguf_file)

    def revision(self) -> str:
        """The Hub's commit, or the first 12 digits of the SHA-256 of the model's files."""
        if "revision" in self.arguments:
            return str(self.arguments["revision"])
        folder = Path(self.location)
        if self.gguf_file is not None:
            return digest_of([folder / self.gguf_file])
        kinds = _HASHED if any(folder.glob("*.safetensors")) else (*_HASHED, _PICKLED)
        return digest_of(sorted(path for kind in kinds for path in folder.glob(kind) if path.is_file()))


def model_source(settings: LoadSettings) -> ModelSource:
    """Read the `--model` setting. Raises FailedPreconditionError for what is no file, or a folder with such in it."""
    if settings.model == "demo":
        return ModelSource(DEMO_NAME, str(demo_folder()))
    path = Path(settings.model)
    if path.is_dir():
        check_files(path)
        _check_alone(str(path))
        return ModelSource(path.resolve().name, str(path))
    if os.path.lexists(path):
        check_kind(path, status_of(path).st_mode)
        return ModelSource(path.stem, str(path.parent), {"gguf_file": path.name})
    if settings.model.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"--model {settings.model}: there is no such folder or file")
    commit = _commit(settings.model, settings.revision)
    _check_alone(settings.model, commit)
    return ModelSource(settings.model, settings.model, {"revision": commit})


def _check_alone(location: str, revision: str | None = None) -> None:
    """Refuse an adapter: transformers would load the base that it names, or leave the adapter beside the matrices."""
    if find_adapter_config_file(location, revision=revision) is not None:
        raise FailedPreconditionError(
            f"model refused: {location} holds an adapter ({ADAPTER_CONFIG_NAME}): name its base model by --model, and "
            "a folder with the adapter alone by --adapter",
            reason="CANNOT_LOAD",
        )


def _commit(model_id: str, revision: str | None) -> str:
    """The commit that a revision is at now: model and tokenizer come from it, whatever is pushed meanwhile.

    Raises OSError where the Hub has no such model or revision.
    """
    config = cached_file(model_id, "config.json", revision=revision or "main")
    if config is None:
        raise FileNotFoundError(f"--model {model_id}: the Hub gave no config.json at revision {revision or 'main'}")
    return Path(config).parent.name


def digest_of(files: list[Path]) -> str:
    """The first 12 digits of the SHA-256 of files with their names."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:12]}"
