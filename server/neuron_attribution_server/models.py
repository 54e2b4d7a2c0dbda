"""Loads a model, proves that it works as its architecture says, and builds the engine around it."""

from __future__ import annotations

from pathlib import Path

import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import Part
from neuron_attribution.results import Exactness, ModelIdentity
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from neuron_attribution_server.architectures.families import FAMILIES
from neuron_attribution_server.architectures.model_view import ModelView
from neuron_attribution_server.architectures.spec import ArchitectureSpec
from neuron_attribution_server.capture import prepare_model
from neuron_attribution_server.config import LoadSettings
from neuron_attribution_server.demo import cache_folder
from neuron_attribution_server.engine import Engine
from neuron_attribution_server.invariants import measure
from neuron_attribution_server.memory import memory_cost
from neuron_attribution_server.model_source import model_source
from neuron_attribution_server.ranges import VocabularyRanges
from neuron_attribution_server.tasks import ModelFacts
from neuron_attribution_server.tokenizer import ExactTokenizer
from neuron_attribution_server.weights import weights_of

EXACT = Exactness(
    exact=True,
    explanation="every ranking is the one that scoring every neuron gives: what was not scored is bounded below it",
)


def load_engine(settings: LoadSettings) -> Engine:
    """Load what the settings name.

    Raises FailedPreconditionError for an architecture that is not supported or an invariant that fails, and what
    transformers raises for a model that is not there.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("highest")  # scores are exact in float32: a GPU's TF32 has 10 bits of 23
    logging.set_verbosity_error()
    source = model_source(settings)
    device = _device(settings.device)
    # A model's files are data: neither its Python code nor a pickle is ever run, and nobody is asked whether to.
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source.location,
        dtype=_dtype(settings.dtype, device),
        use_safetensors=True,
        trust_remote_code=False,
        **source.arguments,
    )
    nn.Module.to(model, device)
    tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False, **source.arguments)
    revision = source.revision()
    ranges = cache_folder() / "ranges" / f"{revision.replace(':', '-')}-{_name(model.dtype)}.safetensors"
    identity = ModelIdentity(source.name, revision, _name(model.dtype))
    return _engine(model, identity, _serialized(tokenizer), ranges)


def engine_from(model: PreTrainedModel, tokenizer_json: str | None = None, name: str = "test") -> Engine:
    """The engine around a model in memory. Without a tokenizer, tokens show as their ids."""
    identity = ModelIdentity(name, "in-memory", _name(model.dtype))
    return _engine(model, identity, tokenizer_json or "", None)


def _engine(model: PreTrainedModel, identity: ModelIdentity, tokenizer: str, ranges: Path | None) -> Engine:
    model.eval().requires_grad_(False)
    view = ModelView(model, _spec(model))
    prepare_model(model)
    weights = weights_of(view)
    invariants = measure(view, weights.unembedding)
    facts = ModelFacts(
        identity=identity,
        family=view.spec.family,
        device=str(view.device),
        sizes=view.sizes,
        maximum_tokens=int(model.config.get_text_config().max_position_embeddings),
        supported_parts=tuple(Part),
        exactness=EXACT,
        invariants=invariants,
        tokenizer=tokenizer,
        memory=memory_cost(view),
    )
    token_text = ExactTokenizer(tokenizer).text if tokenizer else str
    return Engine(view, weights, facts, token_text, VocabularyRanges(weights, ranges))


def _spec(model: PreTrainedModel) -> ArchitectureSpec:
    family = model.config.get_text_config().model_type
    if family not in FAMILIES:
        raise FailedPreconditionError(
            f"model refused: the {family} architecture is not supported; supported: {', '.join(sorted(FAMILIES))}",
            reason="UNSUPPORTED_ARCHITECTURE",
        )
    return FAMILIES[family]


def _device(setting: str) -> torch.device:
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(setting)


def _dtype(setting: str, device: torch.device) -> torch.dtype | str:
    """`auto` keeps a checkpoint's own type on a GPU; a CPU gains nothing from half precision, so float32 there."""
    if setting == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, setting)
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _serialized(tokenizer: object) -> str:
    """The tokenizer as the tokenizers library writes it, which is all the front end needs."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise FailedPreconditionError(
            "model refused: its tokenizer has no fast (tokenizers library) form; convert it and save tokenizer.json",
            reason="NO_FAST_TOKENIZER",
        )
    return str(backend.to_str())
