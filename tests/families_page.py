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
from neuron_attribution_server.model.architectures.refusals import refusal
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, NormKind
from neuron_attribution_server.model.loading.invariants import INVARIANTS
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
REFUSED = """
## Refused

Everything else is refused by name before its weights are read. A type that is a family's under another name, or holds
a language model beside other things, goes by that family and is served if its invariants hold:
{several}.
A type that nobody has described may be guessed from its modules and proven, with
[`--guess-architecture true`](deploying.md#models-that-nobody-has-described): every family above is, when its
description is taken away.

Of the other causal language models that transformers knows:

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
    yield SUPPORTED.format(
        version=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        names=" | ".join(INVARIANTS),
        lines="---:|" * len(INVARIANTS),
    )
    for name, (family, _) in sorted(TINY_FAMILIES.items()):
        yield supported(name, FAMILIES[family], compare_dissected(tiny_family(name), name))
    several = by_their_language_model()
    yield REFUSED.format(several=", ".join(f"{name} ({family})" for name, family in several.items()))
    for family in refused():
        yield f"| {family} | {refusal(family)} |\n"


def by_their_language_model() -> dict[str, str]:
    """Model types that are no family themselves, and the family of the language model in them."""
    others = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *WRAPPERS} - set(FAMILIES))
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
        "exact" if facts.exactness.exact else "not claimed: soft-cap",
        errors,
        f"{brute_force(compared):.0e}",
    )
    return f"| {' | '.join(cells)} |\n"


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
