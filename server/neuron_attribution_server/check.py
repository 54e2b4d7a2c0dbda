"""`neuron-attribution model --check`: a model is loaded and measured as for serving, and not served."""

from __future__ import annotations

import os
from collections.abc import Mapping

from neuron_attribution.convert import model_info_from_proto
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.results import ModelInfo
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

from neuron_attribution_server.front_end.service.served_model import ServedModel
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig, read_config


def check_model(
    model: str, flags: Mapping[str, str | None] | None = None, environment: Mapping[str, str] | None = None
) -> ModelInfo:
    """What GetModel would answer for a model. Raises FailedPreconditionError for one that would be refused.

    `flags` are settings by their names, as texts; what they leave out comes from the environment.
    """
    try:
        config = _config({**(flags or {}), "model": model}, os.environ if environment is None else environment)
        facts = load_engine(config.load_settings[0]).facts
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise FailedPreconditionError(f"model refused: it cannot be loaded: {error}", reason="CANNOT_LOAD") from error
    served = ServedModel(facts, config.limits(facts.maximum_tokens))
    return model_info_from_proto(served.describe(messages.GetModelRequest()))


def _config(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> ServerConfig:
    try:
        return read_config(flags, environment)
    except ConfigurationError as error:
        raise FailedPreconditionError(str(error), reason="CONFIGURATION") from error
