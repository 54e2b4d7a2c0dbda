"""Descriptions of a model that nobody has described, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import nn
from transformers import PreTrainedModel

from neuron_attribution_server.model.architectures.groups.llama import LLAMA
from neuron_attribution_server.model.architectures.guessing.layers import LayerFacts, layer_facts
from neuron_attribution_server.model.architectures.guessing.norms import NormFacts, norm_facts
from neuron_attribution_server.model.architectures.guessing.numbers import logit_factor, residual_factor
from neuron_attribution_server.model.architectures.guessing.trace import (
    Call,
    LayerTrace,
    NoGuessError,
    Trace,
    same,
    trace,
    uses_interface,
)
from neuron_attribution_server.model.architectures.projections import bias_of, weight_of
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec

_INNER = "model.language_model."
"""Where a model that sees pictures too has its language model: descriptions leave it out."""


@torch.no_grad()
def candidates(model: PreTrainedModel, family: str) -> list[ArchitectureSpec]:
    """Descriptions that one pass of a few tokens allows, the likeliest first.

    The model must compute in float32, on one device. Raises NoGuessError where it has what no description can say.
    """
    config = model.config.get_text_config()
    path, layers = _layers(model, config.num_hidden_layers)
    traced = trace(model, layers, interface=uses_interface(model))
    kinds = [layer_facts(layer, config.num_attention_heads, config) for layer in traced.layers]
    final, logits = _final_norm(model, traced)
    multiplier, divisor = logit_factor(config, logits)
    found, problem = [], "its layers differ in more than which of them have experts"
    for choice in product(*kinds):
        spec = _merged(choice)
        if spec is None:
            continue
        norms = [_call(layer, name) for layer, facts in zip(traced.layers, choice, strict=True) for name in facts.norms]
        kinds_of_norms, problem = _norm_facts([*norms, final], spec)
        found += [
            replace(
                spec,
                family=family,
                layers=path.replace(_INNER, "model."),
                final_norm=final.path.replace(_INNER, "model."),
                norm=kind,
                norm_offset=offset,
                norm_epsilon=epsilon,
                residual_multiplier=residual_factor(config, choice[0].factor),
                logit_multiplier=multiplier,
                logit_divisor=divisor,
            )
            for kind, offset, epsilon in kinds_of_norms
        ]
    if not found:
        raise NoGuessError(problem)
    return found


def _layers(model: PreTrainedModel, count: int) -> tuple[str, list[nn.Module]]:
    """Where the layers are, and they: the list of so many, or the longest, or of several the one with most weights."""
    lists = {path: each for path, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each)}
    if any(path.startswith(_INNER) for path in lists):
        lists = {path: each for path, each in lists.items() if path.startswith(_INNER)}
    outer = {path: each for path, each in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if not outer:
        raise NoGuessError("it has no list of layers")

    def likelihood(path: str) -> tuple[bool, int, int]:
        layers = outer[path]
        return len(layers) == count, len(layers), sum(each.numel() for each in layers.parameters())

    path = max(outer, key=likelihood)
    return path, list(outer[path])


def _merged(choice: Sequence[LayerFacts]) -> ArchitectureSpec | None:
    """One description of layers of every kind, its norms' kinds and the model's paths left open; None of none."""
    first = choice[0]
    shared = {
        (each.attention, each.attention_write, each.ffn_norm, each.ffn_write, each.parallel, round(each.factor, 3))
        for each in choice
    }
    dense = {each.dense for each in choice if each.experts is None}
    routed = {(each.experts, each.expert_outputs, each.dense) for each in choice if each.experts is not None}
    if len(shared) > 1 or len(dense) > 1 or len(routed) > 1:
        return None
    experts, outputs, beside = next(iter(routed), (None, (), None))
    attention = first.attention
    return replace(
        LLAMA,
        attention_norm=attention.attention_norm,
        attention_output=attention.attention_output,
        attention_write=first.attention_write,
        attention_weights=attention.attention_weights,
        value=attention.value,
        value_latent=attention.value_latent,
        value_clip=attention.value_clip,
        ffn_norm=first.ffn_norm,
        ffn=next(iter(dense), None) or LLAMA.ffn,
        ffn_write=first.ffn_write,
        experts=experts,
        shared_ffn=beside,
        expert_outputs=outputs,
        parallel=first.parallel,
        adds_in_place=True,
    )


def _call(layer: LayerTrace, path: str) -> Call:
    return next(call for call in layer.calls if call.path == path)


def _norm_facts(norms: Sequence[Call], spec: ArchitectureSpec) -> tuple[list[NormFacts], str]:
    """What all of the norms are, at most one of what is the same for all of them; and what is wrong, if anything."""
    fitting = [norm_facts(call.module, call.read.shape[1], spec) for call in norms]
    common = [facts for facts in fitting[0] if all(facts in others for others in fitting)]
    names = sorted({call.path for call, facts in zip(norms, fitting, strict=True) if not facts})
    if names:
        return [], f"{', '.join(names)} is neither an RMSNorm nor a LayerNorm"
    return common[:1], "its norms are of several kinds"


def _final_norm(model: PreTrainedModel, traced: Trace) -> tuple[Call, float]:
    """The norm that takes in what the last layer gives, and what the logits of it are multiplied by."""
    unembedding = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    logits = traced.logits.double()
    logits = logits if cap is None else cap * (logits / cap).atanh()
    for call in traced.outside:
        unchanged = call.gave.shape != call.read.shape or same(call.read, call.gave)
        if unchanged or call.module is unembedding or not same(call.read, traced.last):
            continue
        bias, usable = bias_of(unembedding), logits.isfinite()
        plain = call.gave @ weight_of(unembedding).T + (0 if bias is None else bias)
        plain, wanted = plain.double()[usable], logits[usable]
        return call, float((plain * wanted).sum() / plain.square().sum())
    raise NoGuessError("no norm outside its layers takes in what the last of them gives")
