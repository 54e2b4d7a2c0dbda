"""Under what conditions a data set is made: rows of other conditions are never mixed into it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuron_attribution.analysis.atomic_files import read_object, write_text
from neuron_attribution.analysis.corpus import Corpus
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import AttributeOptions
from neuron_attribution.results import ModelIdentity

NAME = "conditions.json"
_PACKAGES = ("neuron-attribution", "numpy", "pyarrow")

Facts = dict[str, Any]


class Conditions:
    """The conditions of the data set in a folder: corpus, options and model must stay, software may change.

    Whatever differs from what the folder has recorded is refused by name with FailedPreconditionError.
    """

    def __init__(self, folder: Path, corpus: Corpus, prompts: int, shard_prompts: int, software: Facts) -> None:
        self._path = folder / NAME
        self._facts: Facts = read_object(self._path)
        self._keep("corpus", {"file": corpus.path.name, "sha256": corpus.digest(), "prompts": prompts})
        explained = "own predictions" if corpus.own_predictions else "targets, completions, answers"
        options = _plain(corpus.options) | {"explained": explained, "shard_prompts": shard_prompts}
        self._keep("options", options)
        used = _software() | software
        self._facts["software"] = [*(each for each in self._facts.get("software", []) if each != used), used]

    @property
    def facts(self) -> Facts:
        """All of them, as they are recorded."""
        return self._facts

    def check_model(self, model: ModelIdentity) -> None:
        """Record the model the first time, and refuse another one from then on."""
        is_known = "model" in self._facts
        self._keep("model", asdict(model))
        if not is_known:
            self.write()

    def write(self) -> None:
        """Record them in the folder."""
        write_text(json.dumps(self._facts, indent=2, ensure_ascii=False) + "\n", self._path)

    def _keep(self, name: str, facts: Facts) -> None:
        recorded = self._facts.setdefault(name, facts)
        differing = list(_differences(recorded, facts))
        if differing:
            raise FailedPreconditionError(
                f"{self._path.parent} was begun under other conditions: {'; '.join(differing)}; "
                "go on under the same ones, or write to another folder",
                reason="OTHER_CONDITIONS",
            )


def _differences(recorded: Facts, facts: Facts) -> Iterator[str]:
    for name in sorted({*recorded, *facts} - {"file"}):
        if recorded.get(name) != facts.get(name):
            yield f"{name.replace('_', ' ')} was {recorded.get(name)!r} and is {facts.get(name)!r} now"


def _plain(options: AttributeOptions) -> Facts:
    """The options as JSON has them."""
    return {name: _value(value) for name, value in asdict(options).items()}


def _value(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [str(each) for each in value]
    return sorted(part.value for part in value) if isinstance(value, frozenset) else value


def _software() -> Facts:
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
