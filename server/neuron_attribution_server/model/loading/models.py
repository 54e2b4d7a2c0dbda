"""Loads a model, proves that it works as its architecture says, and builds the engine around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import Part
from neuron_attribution.results import Exactness, ModelIdentity
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.refusals import REFUSED, refusal
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec
from neuron_attribution_server.model.capture.capture import prepare_model
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.engine.generation import make_greedy
from neuron_attribution_server.model.loading.adapters import merged
from neuron_attribution_server.model.loading.chat_templates import chat_templates
from neuron_attribution_server.model.loading.guessed.guesses import guessed_spec
from neuron_attribution_server.model.loading.invariants import measure
from neuron_attribution_server.model.loading.load_failures import Reading, check_tensors, naming_files
from neuron_attribution_server.model.loading.math_libraries import most_threads
from neuron_attribution_server.model.loading.memory import memory_cost
from neuron_attribution_server.model.loading.packed.checkpoints import keeping_packed, tell_packed, unpack_for
from neuron_attribution_server.model.loading.placement import check_whole, device_of, loading_arguments, place
from neuron_attribution_server.model.loading.ranges import VocabularyRanges
from neuron_attribution_server.model.loading.sources.adapter_source import AdapterSource, adapter_source
from neuron_attribution_server.model.loading.sources.demo import cache_folder
from neuron_attribution_server.model.loading.sources.model_source import ModelSource, model_source
from neuron_attribution_server.model.loading.text_only import keep_language_model, loader_of
from neuron_attribution_server.model.loading.usual_contexts import usual_activity
from neuron_attribution_server.model.loading.weights import weights_of
from neuron_attribution_server.model.tracing.support import why_untraceable
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.model_facts import ChatTemplates, ModelFacts
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer

Value = TypeVar("Value")
EXACT = Exactness(
    exact=True,
    explanation="every ranking is the one that scoring every neuron gives: what was not scored is bounded below it; "
    "where no bound can tell neurons apart, the search ends and its coverage says that it is not exact",
)

CAPPED = Exactness(
    exact=False,
    explanation="the model soft-caps its logits: rankings are screened by the slope plus a margin of 0.77 / cap times "
    "the square of the largest logit a neuron can add, what passes is scored exactly; exhaustive rankings are exact",
)


def load_engine(settings: LoadSettings) -> Engine:
    """Load what the settings name.

    Raises FailedPreconditionError for an architecture that is not supported, an invariant that fails and files that
    cannot be loaded, OSError for a model that is not there, and ImportError for a package that it needs.
    """
    torch.set_num_threads(settings.threads or most_threads(torch.get_num_threads()))
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums of bfloat16 products, too
    torch.set_float32_matmul_precision("highest")  # scores are exact in float32: a GPU's TF32 has 10 bits of 23
    logging.set_verbosity_error()
    source, adapter = model_source(settings), adapter_source(settings)
    revision_later = _begun(source.revision)
    with naming_files(source, Reading.MODEL if source.gguf_file is None else Reading.GGUF):
        model = _model(source, adapter, settings)
    with naming_files(source, Reading.TOKENIZER):
        found = AutoTokenizer.from_pretrained(source.location, **_own_code(settings), **source.arguments)
        serialized, chat = _serialized(found), chat_templates(found)
        tokenizer = ExactTokenizer(serialized)
        tokenizer.ids("a")  # some break at their first text only
    name, revision = source.name, revision_later.result()
    if adapter is not None:
        name, revision = f"{name}+{adapter.name}", f"{revision}+{adapter.revision()}"
    ranges = cache_folder() / "ranges" / f"{revision.replace(':', '-')}-{_name(model.dtype)}"
    identity = ModelIdentity(name, revision, _name(model.dtype))
    return _engine(model, identity, serialized, tokenizer, ranges, chat, guess=settings.guess_architecture)


def _begun(function: Callable[[], Value]) -> Future[Value]:
    """What a function gives, from a thread that nobody waits for where loading fails: it may read for minutes."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def engine_from(
    model: PreTrainedModel, tokenizer_json: str | None = None, name: str = "test", *, guess: bool = False
) -> Engine:
    """The engine around a model in memory. Without a tokenizer, tokens show as their ids."""
    identity = ModelIdentity(name, "in-memory", _name(model.dtype))
    tokenizer = ExactTokenizer(tokenizer_json) if tokenizer_json else None
    return _engine(model, identity, tokenizer_json or "", tokenizer, None, ChatTemplates(), guess=guess)


def _engine(
    model: PreTrainedModel,
    identity: ModelIdentity,
    serialized: str,
    tokenizer: ExactTokenizer | None,
    ranges: Path | None,
    chat: ChatTemplates,
    *,
    guess: bool,
) -> Engine:
    check_whole(model)
    model.eval().requires_grad_(False)
    make_greedy(model)
    view = _view(model, _spec(model.config, guess=guess))
    prepare_model(view)
    weights = weights_of(view)
    invariants = measure(view, weights.unembedding)
    activity = None if tokenizer is None else usual_activity(view, tokenizer.ids)
    facts = ModelFacts(
        identity=identity,
        family=view.spec.family,
        device=str(view.device),
        sizes=view.sizes,
        maximum_tokens=view.maximum_tokens,
        supported_parts=tuple(Part),
        exactness=EXACT if view.logit_cap is None else CAPPED,
        invariants=invariants,
        tokenizer=serialized,
        memory=memory_cost(view),
        chat=chat,
        activity_contexts=0 if activity is None else activity.contexts,
        layers=tuple(layer.parts for layer in view.layers),
        untraceable=why_untraceable(view) or "",
    )
    token_text = str if tokenizer is None else tokenizer.text
    vocabulary_ranges = VocabularyRanges(weights, ranges)
    return Engine(view, weights, facts, token_text, vocabulary_ranges, activity, vocabulary_ranges)


def _model(source: ModelSource, adapter: AdapterSource | None, settings: LoadSettings) -> PreTrainedModel:
    """The model with every tensor as its files have it, and the adapter's in them, where it runs."""
    loader: Any = AutoModelForCausalLM
    config: PreTrainedConfig | None = None
    is_guessed = False
    if source.gguf_file is None:
        config = AutoConfig.from_pretrained(source.location, **_own_code(settings), **source.arguments)
        is_guessed = _spec(config, guess=settings.guess_architecture) is None
        loader = loader_of(config)

    def load(**arguments: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model as transformers loads it, and what it tells of the tensors."""
        model, info = loader.from_pretrained(
            source.location,
            dtype=_dtype(settings.dtype, device_of(settings)),
            use_safetensors=None if settings.pickled_weights else True,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            output_loading_info=True,
            **loading_arguments(settings),
            **_own_code(settings),
            **source.arguments,
            **arguments,
        )
        return model, info

    with _naming_pickled_weights(source, settings):
        model, info, packing = keeping_packed(config, load)
    check_tensors(source, info)
    keep_language_model(model)
    if getattr(model, "is_quantized", False) and source.gguf_file is None:
        _refuse_spread(settings)
        model = _dequantized(model)
    if packing is not None and (adapter is not None or is_guessed):
        _refuse_spread(settings)
        unpack_for(model, packing, "an adapter is merged into them" if adapter else "a guess is proven on them")
        packing = None
    if adapter is not None:
        model = merged(model, source, adapter)
    place(model, settings)
    if packing is not None:
        tell_packed(model, packing, device_of(settings))
    return model


@contextmanager
def _naming_pickled_weights(source: ModelSource, settings: LoadSettings) -> Iterator[None]:
    """Where a folder has no safetensors but other weights, name the setting that reads those."""
    try:
        yield
    except OSError as error:
        if settings.pickled_weights or not any(Path(source.location).glob("*.bin")):
            raise
        raise FailedPreconditionError(
            f"model refused: {error}. It has pickled weights (.bin), which can run code when they are read; "
            "--pickled-weights true reads them all the same",
            reason="NO_SAFETENSORS",
        ) from error


def _own_code(settings: LoadSettings) -> dict[str, bool]:
    return {"trust_remote_code": settings.trust_remote_code}


def _view(model: PreTrainedModel, spec: ArchitectureSpec | None) -> ModelView:
    if spec is None:
        spec = guessed_spec(model, _model_type(model.config))
    try:
        return ModelView(model, spec)
    except (AttributeError, IndexError) as error:
        raise FailedPreconditionError(
            f"model refused: its modules are not where the {spec.family} architecture has them: {error}",
            reason="UNSUPPORTED_ARCHITECTURE",
        ) from error


def _spec(config: PreTrainedConfig, *, guess: bool) -> ArchitectureSpec | None:
    """The architecture's spec, by the configuration alone: a model is refused before its weights are read.

    None for one that nobody has described and that may be guessed. What is known not to fit is refused all the same.
    """
    family = _model_type(config)
    if family in FAMILIES:
        return FAMILIES[family]
    if guess and family not in REFUSED:
        return None
    remedy = "" if family in REFUSED else "; --guess-architecture true tries to find them"
    raise FailedPreconditionError(
        f"model refused: the {family} architecture is not supported: {refusal(family)}{remedy}; "
        f"supported: {', '.join(sorted(FAMILIES))}",
        reason="UNSUPPORTED_ARCHITECTURE",
    )


def _model_type(config: PreTrainedConfig) -> str:
    """Of its language model, unless what holds that is known not to fit."""
    if config.model_type in REFUSED:
        return str(config.model_type)
    try:
        return str(config.get_text_config().model_type)
    except ValueError:  # it holds several language models
        return str(config.model_type)


def _refuse_spread(settings: LoadSettings) -> None:
    """Raise FailedPreconditionError where a checkpoint that is unpacked at load is to be spread over devices."""
    if settings.device_map is not None:
        raise FailedPreconditionError(
            "model refused: a checkpoint quantized like this one cannot be spread over devices, for its matrices are "
            "unpacked at load, and would not fit where the packed ones do; leave --device-map out, or serve the "
            "checkpoint it was made from",
            reason="QUANTIZED_AND_SPREAD",
        )


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same numbers as plain matrices, where transformers can make them. Raises FailedPreconditionError."""
    try:
        plain: PreTrainedModel = model.dequantize()
    except NotImplementedError as error:
        raise FailedPreconditionError(
            "model refused: transformers does not unpack weights of this format; serve the checkpoint it was made from",
            reason="CANNOT_DEQUANTIZE",
        ) from error
    return plain


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
