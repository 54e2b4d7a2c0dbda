"""Writes docs/architectures.md from a run: every family's tiny model is loaded, measured and compared to brute force.

PYTHONPATH=tests python -m families_page [FILE]
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import AttributeOptions
from neuron_attribution.results import LayerParts, Mixer
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.refusals import REFUSED as NOT_FITTING
from neuron_attribution_server.model.architectures.refusals import refusal
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, NormKind
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.invariants import INVARIANTS
from neuron_attribution_server.model.loading.models import engine_from
from reference.compare_neurons import ranking_key
from reference.compared import Compared, compare_dissected
from reference.tiny_families import TINY_FAMILIES, tiny_family
from reference.tiny_wrappers import WRAPPERS
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
PROMPT = (45, 73, 93, 18, 59, 56)
TARGET = 5
OPTIONS = AttributeOptions(top_k=50, query_sources=8, projection_top_k=0)
INTRODUCTION = """# Architectures

This page is written by `make architectures`, from a run. A model is served if its family is described in
[groups](../server/neuron_attribution_server/model/architectures/groups) **and** the seven
invariants hold when it is loaded; `neuron-attribution model --check MODEL` loads a model, measures them and
serves nothing.

| invariant | what it says |
|---|---|
"""
SUPPORTED = """
## Supported

Each row is a model with random weights, float32, two to four layers, hidden size 32, a vocabulary of 97 (transformers
{version}, torch {torch}, CPU), measured when it was loaded: the largest absolute difference relative to the largest
value. *Brute force* is the largest absolute difference of the 50 strongest neurons' scores of either kind to a
float64 oracle that takes the model apart by how it behaves and reads no description. *Attention* says how its
weights are had: recorded beside fused attention, or as the model's own attention returns them, with all of a
layer's in memory at once.

| model | attention | FFN | norms | guarantee | {names} | brute force |
|---|---|---|---|---|{lines}---:|
"""
WELL_KNOWN = """
## Well-known models

What an attribution tells of them, by their family's tiny model below. Every layer of every model has layer scores, can
be a query layer, and can be intervened in as a whole; layers
[without attention weights](reading.md#layers-without-attention-weights) have nothing that has a source position.

| models | `model_type` | heads, their positions and attention neurons | FFN neurons | subkeys | guarantee |
|---|---|---|---|---|---|
"""
MODELS = {
    "Llama 2 to 3.3, SmolLM2": "llama",
    "Llama 4": "llama4_text",
    "Mistral": "mistral",
    "Ministral 3": "ministral3",
    "Mixtral": "mixtral",
    "Qwen2.5": "qwen2",
    "Qwen2.5-VL": "qwen2_5_vl_text",
    "Qwen3": "qwen3",
    "Qwen3, experts": "qwen3_moe",
    "Qwen3-VL": "qwen3_vl_text",
    "Qwen3-Next": "qwen3_next",
    "Qwen3.5": "qwen3_5_text",
    "Qwen3.5, experts": "qwen3_5_moe_text",
    "Gemma 2": "gemma2",
    "Gemma 3": "gemma3_text",
    "Gemma 4": "gemma4_text",
    "Gemma 4, experts": "gemma4_text, experts",
    "gpt-oss": "gpt_oss",
    "Phi-3, Phi-4": "phi3",
    "DeepSeek-V3, DeepSeek-R1": "deepseek_v3",
    "DeepSeek-V3.2": "deepseek_v32",
    "Kimi Linear": "kimi_linear",
    "GLM-4.5 to 4.7": "glm4_moe",
    "GLM-5": "glm_moe_dsa",
    "MiniMax-M2": "minimax_m2",
    "MiniMax-M3": "minimax_m3_vl_text",
    "MiMo-V2-Flash": "mimo_v2_flash",
    "SmolLM3": "smollm3",
    "OLMo 2": "olmo2",
    "OLMo 3": "olmo3",
    "OLMo Hybrid": "olmo_hybrid",
    "Granite 4": "granitemoehybrid",
    "LFM2": "lfm2",
    "Falcon-H1": "falcon_h1",
    "Nemotron-H": "nemotron_h",
    "Jamba": "jamba",
    "RecurrentGemma": "recurrent_gemma",
    "Command R7B, Command A": "cohere2",
    "EXAONE 4": "exaone4",
    "ERNIE 4.5": "ernie4_5",
    "Seed-OSS": "seed_oss",
    "BitNet": "bitnet",
    "GPT-2": "gpt2",
    "Pythia, GPT-NeoX": "gpt_neox",
}
"""The tiny model that each is like."""
REFUSED = """
## Refused

Everything else is refused by name before its weights are read. A type that is a family's under another name, or holds
a language model beside other things, goes by that family and is served if its invariants hold:
{several}.
A type that nobody has described may be guessed from its modules and proven, with
[`--guess-architecture true`](deploying.md#models-that-nobody-has-described): most families above are, when their
descriptions are taken away.

Of the {known} types of causal language models that transformers knows, {served} are served. The others:

| `model_type` | why |
|---|---|
"""


def main() -> None:
    """Write the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    path.write_text("".join(lines()))


def lines() -> Iterator[str]:
    """The page."""
    yield INTRODUCTION
    for name, check in INVARIANTS.items():
        yield f"| {name} | {(check.__doc__ or '').splitlines()[0]} |\n"
    yield WELL_KNOWN
    for models, name in MODELS.items():
        yield well_known(models, name, engine_from(tiny_family(name)))
    yield SUPPORTED.format(
        version=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        names=" | ".join(INVARIANTS),
        lines="---:|" * len(INVARIANTS),
    )
    for name, (family, _) in sorted(TINY_FAMILIES.items()):
        yield supported(name, FAMILIES[family], compare_dissected(tiny_family(name), name))
    several = by_their_language_model()
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    yield REFUSED.format(
        several=", ".join(f"{name} ({family})" for name, family in several.items()),
        known=len(known),
        served=len(known) - len(refused()),
    )
    for family in refused():
        yield f"| {family} | {refusal(family)} |\n"


def by_their_language_model() -> dict[str, str]:
    """Model types that are no family themselves, and the family of the language model in them."""
    others = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *WRAPPERS} - set(FAMILIES) - set(NOT_FITTING))
    families = {name: language_model(name) for name in others}
    return {name: family for name, family in families.items() if family in FAMILIES}


def language_model(name: str) -> str:
    """The type of the language model in a type's model, by its configuration; its own where that does not say."""
    try:
        return str(CONFIG_MAPPING[name]().get_text_config().model_type)
    except (ValueError, StrictDataclassError):  # several language models, or none without being told more
        return name


def refused() -> list[str]:
    """Model types that are refused."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FAMILIES) - set(by_their_language_model()))


def supported(name: str, spec: ArchitectureSpec, compared: Compared) -> str:
    """One measured model."""
    facts = compared.engine.facts
    view = compared.engine._view
    errors = " | ".join(f"{invariant.error:.0e}" for invariant in facts.invariants)
    cells = (
        name,
        attention(spec, facts.layers),
        ffn(view.spec, facts.sizes.experts, facts.sizes.ffn_width),
        norms(view.spec),
        guarantee(facts.exactness.exact),
        errors,
        f"{brute_force(compared):.0e}",
    )
    return f"| {' | '.join(cells)} |\n"


def well_known(models: str, name: str, engine: Engine) -> str:
    """What an attribution tells of models like a tiny one."""
    facts, view = engine.facts, engine._view
    others = {mixer.value for layer in facts.layers for mixer in layer.mixers if mixer is not Mixer.ATTENTION}
    beside = any(len(layer.mixers) > 1 for layer in facts.layers)
    if all(layer.heads for layer in facts.layers):
        heads = "every layer" + (f", beside a {others.pop()}" if beside else "")
    else:
        heads = "layers with attention" + (f"; others have a {others.pop()}" if others else "")
    where = "every layer" if all(layer.ffn_width or layer.experts for layer in facts.layers) else "layers with an FFN"
    cells = (
        models,
        TINY_FAMILIES[name][0],
        heads,
        f"{where}, {ffn(view.spec, facts.sizes.experts, facts.sizes.ffn_width)}",
        "up, gate" if view.gated else "up",
        guarantee(facts.exactness.exact),
    )
    return f"| {' | '.join(cells)} |\n"


def guarantee(exact: bool) -> str:
    """Whether rankings are proven to be exact."""
    return "exact" if exact else "not claimed: soft-cap"


def attention(spec: ArchitectureSpec, layers: Sequence[LayerParts]) -> str:
    """How its weights are had, and what mixes positions beside it or in other layers."""
    had = "recorded" if spec.uses_attention_interface else "returned"
    others = Counter(mixer for layer in layers for mixer in layer.mixers if mixer is not Mixer.ATTENTION)
    return ", ".join([had, *(f"{mixer.value} in {count} of {len(layers)} layers" for mixer, count in others.items())])


def ffn(spec: ArchitectureSpec, experts: int, width: int) -> str:
    """What a layer's FFN consists of, and what it reads."""
    kind = "dense" if not experts else "experts and a shared or dense one" if width else "experts"
    return f"{kind}, parallel" if spec.parallel else kind


def norms(spec: ArchitectureSpec) -> str:
    """Of which kind, and where."""
    kind = "LayerNorm" if spec.norm is NormKind.LAYER else "RMSNorm"
    before = spec.attention_norm is not None
    after = spec.attention_write is not None
    return f"{kind}, {'before and after' if before and after else 'after' if after else 'before'}"


def brute_force(compared: Compared) -> float:
    """The largest difference of a score of the strongest neurons."""
    got = compared.explain_last(PROMPT, TARGET, options=OPTIONS)
    want = compared.oracle(PROMPT).explain(None, TARGET)
    pairs = (
        (got.ffn_value_neurons, want.ffn_neuron_scores()),
        (got.attention_value_neurons, want.attention_neuron_scores()),
    )
    return max(abs(entry.score - scores[ranking_key(entry)]) for ranking, scores in pairs for entry in ranking.neurons)


if __name__ == "__main__":
    try:
        main()
    except FailedPreconditionError as error:
        sys.exit(str(error))
