"""An adapter's folder, as peft saves it: what is in it, and whether that can be merged into a model's weights.

All of this is read from its configuration alone, before anything large is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuron_attribution.errors import FailedPreconditionError
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from neuron_attribution_server.model.loading.sources.model_files import check_files
from neuron_attribution_server.model.loading.sources.model_source import digest_of
from neuron_attribution_server.settings.config import LoadSettings

_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_MERGED = "LORA"
_PLAIN = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "runtime_config"),
        *("base_model_name_or_path", "revision"),
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"),
        *("bias", "lora_bias", "use_dora", "modules_to_save", "trainable_token_indices", "ensure_weight_tying"),
        *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("megatron_core", "qalora_group_size"),
    )
)
"""What a LoRA configuration may say: the merged matrix is W + scale B A, with DoRA's lengths where it has them. What
else there is depends on the token, changes the layers, or is not known here."""
_BASE_AS_IT_IS = (True, False, "gaussian", "eva", "orthogonal")
"""The beginnings of training that leave the base's own weights alone."""
_REMEDY = (
    "where peft can merge it (merge_and_unload), save the merged model and serve that folder; what changes no weights, "
    "such as prompt and prefix tuning, cannot be merged"
)


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A LoRA adapter in a folder; `settings` is its configuration as it is written there."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def config(self) -> Path:
        """Its configuration's file."""
        return self.folder / ADAPTER_CONFIG_NAME

    @property
    def weights(self) -> Path:
        """Its tensors' file; a pickle where there are no safetensors."""
        safe = self.folder / _WEIGHTS
        return safe if safe.is_file() else self.folder / _PICKLED

    @property
    def base(self) -> str:
        """The model that it says it was made for, or nothing."""
        return str(self.settings.get("base_model_name_or_path") or "")

    def revision(self) -> str:
        """The first 12 digits of the SHA-256 of what is loaded of it."""
        return digest_of([self.config, self.weights])


def adapter_source(settings: LoadSettings) -> AdapterSource | None:
    """Read the `--adapter` setting. Raises FailedPreconditionError for what cannot be merged, FileNotFoundError."""
    if settings.adapter is None:
        return None
    folder = Path(settings.adapter)
    if not folder.is_dir():
        raise FileNotFoundError(f"--adapter {folder}: there is no such folder")
    check_files(folder)
    source = AdapterSource(folder, _configuration(folder / ADAPTER_CONFIG_NAME))
    _check_kind(source)
    _check_weights(source, settings)
    if find_spec("peft") is None:
        raise refused_adapter("--adapter needs the package peft: pip install 'neuron-attribution[adapters]'")
    return source


def refused_adapter(problem: str) -> FailedPreconditionError:
    """The error for an adapter that is not merged."""
    return FailedPreconditionError(f"adapter refused: {problem}", reason="UNUSABLE_ADAPTER")


def _configuration(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise refused_adapter(f"there is no file {path}: name a folder as peft's save_pretrained writes it")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise refused_adapter(f"{path} is not valid JSON ({error}): copy or download it again") from error
    if not isinstance(content, dict):
        raise refused_adapter(f"{path} does not hold a JSON object: copy or download it again")
    return content


def _check_kind(source: AdapterSource) -> None:
    """Whether what the configuration describes is a change of the base's matrices, the same for every token."""
    kind = source.settings.get("peft_type")
    if kind != _MERGED:
        raise refused_adapter(f"{source.config} has the type {kind}; only {_MERGED} adapters are merged: {_REMEDY}")
    others = sorted(name for name, value in source.settings.items() if value and name not in _PLAIN)
    if others:
        raise refused_adapter(
            f"{source.config} sets {', '.join(others)}; such a LoRA is not merged into the base's neurons: {_REMEDY}"
        )
    begun = source.settings.get("init_lora_weights", True)
    if begun not in _BASE_AS_IT_IS:
        raise refused_adapter(
            f"{source.config} has init_lora_weights {begun}, which changes the base's own weights before training; "
            "save it as an adapter of the base as it is: save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _check_weights(source: AdapterSource, settings: LoadSettings) -> None:
    if not source.weights.is_file():
        raise refused_adapter(f"there is no file {source.folder / _WEIGHTS}: copy or download the adapter again")
    if source.weights.name == _PICKLED and not settings.pickled_weights:
        raise refused_adapter(
            f"{source.weights} is a pickle, which can run code when it is read, and there is no {_WEIGHTS}; "
            "--pickled-weights true reads it all the same"
        )
