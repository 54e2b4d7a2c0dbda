"""Architectures that nobody has described: guessed from a model, and proven before it is served."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain

from neuron_attribution.errors import FailedPreconditionError
from transformers import PreTrainedModel

from neuron_attribution_server.model.architectures.guessing.guess import candidates
from neuron_attribution_server.model.architectures.guessing.trace import NoGuessError
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec
from neuron_attribution_server.model.capture.capture import prepare_model
from neuron_attribution_server.model.loading.guessed.proof import prove

GUESSED = "guessed:"
"""What the family of a guessed architecture begins with; its model type follows."""

_log = logging.getLogger(__name__)


def guessed_spec(model: PreTrainedModel, model_type: str) -> ArchitectureSpec:
    """The first description that is proven. Raises FailedPreconditionError, naming what the likeliest one fails at.

    The model computes in float32 meanwhile, whatever its type: rounding would hide what tells descriptions apart.
    """
    with _in_float32(model):
        problem = ""
        for spec in _candidates(model, model_type):
            try:
                _try(model, spec)
            except FailedPreconditionError as error:
                problem = problem or str(error).removeprefix("model refused: ")
                continue
            _log.warning("the %s architecture is described nowhere; guessed, and proven: %s", model_type, _shown(spec))
            return spec
    raise _refusal(model_type, f"and the likeliest guess fails: {problem}", "INVARIANT_FAILED")


def _candidates(model: PreTrainedModel, model_type: str) -> list[ArchitectureSpec]:
    try:
        return candidates(model, GUESSED + model_type)
    except NoGuessError as error:
        raise _refusal(model_type, f"and cannot be guessed: {error}", "UNSUPPORTED_ARCHITECTURE") from error
    except Exception as error:  # a model of any kind may raise any when it is run as a language model
        problem = f"and cannot be guessed: {type(error).__name__}: {error}"
        raise _refusal(model_type, problem, "UNSUPPORTED_ARCHITECTURE") from error


def _try(model: PreTrainedModel, spec: ArchitectureSpec) -> None:
    try:
        view = ModelView(model, spec)
        prepare_model(view)
        prove(view)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise FailedPreconditionError(f"it cannot be read so: {type(error).__name__}: {error}") from error


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Half-precision weights as float32 ones, which hold all of them exactly, and back."""
    tensors = [each for each in chain(model.parameters(), model.buffers()) if each.is_floating_point()]
    types = [each.dtype for each in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(tensors, types, strict=True):
            tensor.data = tensor.data.to(dtype)


def _refusal(model_type: str, problem: str, reason: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"model refused: the {model_type} architecture is described nowhere, {problem}", reason=reason
    )


def _shown(spec: ArchitectureSpec) -> str:
    """The fields that say something, for a log or a bug report."""
    named = {each.name: getattr(spec, each.name) for each in fields(spec)}
    return ", ".join(f"{name}={value!r}" for name, value in named.items() if value not in (None, (), False))
