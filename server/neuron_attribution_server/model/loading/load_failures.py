"""Why a model cannot be loaded, in one line that names the file and the remedy.

The libraries that read a model's files raise whatever comes up, and seldom say of which file. So the files are looked
at once more where loading has failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuron_attribution.errors import FailedPreconditionError, NeuronAttributionError
from safetensors import SafetensorError, safe_open

from neuron_attribution_server.model.loading.sources.model_source import ModelSource


class Reading(Enum):
    """What is being loaded, and the remedy where no file of it is seen to be damaged."""

    MODEL = "config.json describes no such model: correct it, or copy or download the model again"
    GGUF = "where it is cut short or damaged, copy or download it again"
    TOKENIZER = (
        "where its tokenizer files are missing or damaged, copy or download them again; where they are of a later "
        f"version than tokenizers {version('tokenizers')} and transformers {version('transformers')}, upgrade these"
    )


_AGAIN = "copy or download it again"
_POINTER = b"version https://git-lfs.github.com/"
_CLEAR = (OSError, ValueError, RuntimeError)
"""What is raised with words for people, mostly; of any other error the kind says as much as its words."""
_PANIC = "PanicException"
"""What a failed assertion of a library written in Rust becomes: a BaseException, whose class cannot be imported."""
_JSON = ("config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")
_INDEX = "*.safetensors.index.json"
_NEEDED = {
    Reading.MODEL: ("*.safetensors", "*.bin"),
    Reading.TOKENIZER: ("tokenizer.json", "*.gguf", "*.model", "*.tiktoken", "*.spm", "vocab*"),
}
"""The files of which a folder needs one, the best first."""


@contextmanager
def naming_files(source: ModelSource, reading: Reading) -> Iterator[None]:
    """Raise FailedPreconditionError for whatever is raised within, but an ImportError, which names its own remedy."""
    try:
        yield
    except (NeuronAttributionError, ImportError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise _refusal(damage(source) or _described(source, reading, error)) from error


def check_tensors(source: ModelSource, info: Mapping[str, Any]) -> None:
    """Refuse a model of which tensors are missing or have other shapes: transformers would make them up.

    `info` is what `from_pretrained` tells of them. Raises FailedPreconditionError.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing:
        problem = f"lacks {len(missing)} of the tensors that its configuration asks for, such as {missing[0]}"
    elif mismatched:
        name, stored, expected = mismatched[0]
        problem = f"has {name} as {_shape(stored)}, and its configuration asks for {_shape(expected)}"
    else:
        return
    raise _refusal(f"{source.path} {problem}: the model is incomplete, or its configuration another's; {_AGAIN}")


def damage(source: ModelSource) -> str:
    """What is wrong with the files of a model on this machine, with the remedy; empty where nothing is seen to be."""
    folder = Path(source.location)
    if source.gguf_file is not None:
        return _pointer(folder / source.gguf_file)
    if not folder.is_dir():
        return ""
    if not (folder / "config.json").is_file():
        return f"{folder} has no file config.json: name the folder of a model, as transformers saves it"
    json_files, weights = _files(folder, *_JSON, _INDEX), _files(folder, "*.safetensors")
    return (
        _first(_pointer, [*json_files, *weights])
        or _first(_json_damage, json_files)
        or _first(_missing_shard, _files(folder, _INDEX))
        or _first(_weights_damage, weights)
    )


def _described(source: ModelSource, reading: Reading, error: BaseException) -> str:
    """What a library says, and the remedy where that is not said as well."""
    says_enough = reading is Reading.MODEL and isinstance(error, _CLEAR)
    remedy = _missing(source, reading) or ("" if says_enough else reading.value)
    return f"{source.path} cannot be loaded: {words_of(error)}" + (remedy and f"; {remedy}")


def _missing(source: ModelSource, reading: Reading) -> str:
    folder, needed = Path(source.location), _NEEDED.get(reading)
    if needed is None or not folder.is_dir() or _files(folder, *needed):
        return ""
    return f"there is no file {needed[0]}: copy or download the model again"


def _files(folder: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _first(look: Callable[[Path], str], paths: Iterable[Path]) -> str:
    return next(filter(None, map(look, paths)), "")


def _pointer(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(len(_POINTER))
    return f"{path} is a pointer of Git LFS: run `git lfs pull` in its folder" if begin == _POINTER else ""


def _json_damage(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"{path} is not valid JSON ({error}): {_AGAIN}"
    return "" if isinstance(content, dict) else f"{path} does not hold a JSON object: {_AGAIN}"


def _missing_shard(index: Path) -> str:
    shards = json.loads(index.read_bytes()).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        return f"{index} has no weight_map from tensors to files: {_AGAIN}"
    missing = sorted({shard for shard in shards.values() if not (index.parent / shard).is_file()})
    return f"{index.parent / missing[0]}, which {index.name} names, is missing: {_AGAIN}" if missing else ""


def _weights_damage(path: Path) -> str:
    try:
        with safe_open(path, framework="pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"{path} is cut short or damaged ({error}): {_AGAIN}"


def words_of(error: BaseException) -> str:
    """An error in one line, with its kind where the words alone would not do."""
    words = " ".join(str(error).split())
    return words if words and isinstance(error, _CLEAR) else f"{type(error).__name__}: {words}"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _refusal(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"model refused: {problem}", reason="CANNOT_LOAD")
