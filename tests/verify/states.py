"""What one prompt goes through: recorded by plain hooks in float32, or taken from the oracle's pass in float64.

A pass in half precision goes another way with each order of its sums. There, what the engine's own pass recorded is
taken: that the recording is right is shown in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import ExplainedRows
from neuron_attribution_server.model.engine.engine import Engine
from reference.oracle import Explained
from torch import Tensor, nn

from verify.subjects import Subject, rms


@dataclass(frozen=True)
class States:
    """At the last position of a prompt of T tokens. L layers, N FFN width, H heads, D head size, V vocabulary.

    Coefficients are divided by the final norm's scale, and by that of a norm the neuron's write passes through, so that
    one times its neuron's projection is what the neuron adds to the logits.
    """

    tokens: tuple[int, ...]
    target: int
    """The most probable next token."""
    contrast: int
    """The second most probable one."""
    ffn_coefficients: Tensor
    """[L, N, 1]"""
    attention_coefficients: Tensor
    """alpha * v, [L, H * D, T]"""
    ffn_probabilities: Tensor
    """softmax of each layer's state between attention and FFN, read through the frozen final norm, [L, V]"""
    attention_probabilities: Tensor
    """The same of each layer's input, [L, V]"""


@torch.no_grad()
def record(subject: Subject, model: Any, tokens: Sequence[int]) -> States:
    """Run the subject's model, whose attention must be eager, on one prompt.

    All of it without gradients: the probabilities would keep the float64 unembedding they were computed with.
    """
    inputs, attention_writes, values, coefficients = [], [], [], []
    attention_scales, ffn_scales = [], []
    layers = model.model.layers
    handles = [model.model.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, -1]))]
    for layer in layers:
        attention_norm, ffn_norm = subject.attention_norm(layer), subject.ffn_norm(layer)
        writer = attention_norm or layer.self_attn.o_proj
        handles += [
            layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, -1])),
            layer.self_attn.v_proj.register_forward_hook(lambda _, __, output: values.append(output[0])),
            writer.register_forward_hook(lambda _, __, output: attention_writes.append(output[0, -1])),
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: coefficients.append(args[0][0, -1])),
        ]
        for norm, scales in ((attention_norm, attention_scales), (ffn_norm, ffn_scales)):
            if norm is not None:
                handles.append(norm.register_forward_pre_hook(_scale_to(scales)))
    try:
        output = model(torch.tensor([tokens]), output_attentions=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    stream = torch.stack(inputs).double()
    scale = rms(model.model.norm, stream[-1])
    gamma = subject.weight(model.model.norm).double()
    unembedding = model.lm_head.weight.double()
    attention = torch.stack([weights[0, :, -1] for weights in output.attentions]).double()
    target, contrast = output.logits[0, -1].topk(2).indices.tolist()
    return States(
        tokens=tuple(tokens),
        target=target,
        contrast=contrast,
        ffn_coefficients=torch.stack(coefficients).double()[:, :, None] / (scale * _column(ffn_scales)),
        attention_coefficients=_sources(attention, torch.stack(values).double(), model.config.head_dim)
        / (scale * _column(attention_scales)),
        ffn_probabilities=_probabilities(
            unembedding, gamma / scale * (stream[:-1] + torch.stack(attention_writes).double())
        ),
        attention_probabilities=_probabilities(unembedding, gamma / scale * stream[:-1]),
    )


@torch.no_grad()
def captured(subject: Subject, model: Any, engine: Engine, tokens: Sequence[int]) -> States:
    """What the engine records; of the model, which is in float32, only the weights are read."""
    view, last = engine._view, len(tokens) - 1
    assert not subject.norms_writes
    found = capture(view, [tokens], ExplainedRows.from_counts([[last]], view.device))
    stream = torch.stack([states[0, last] for states in found.inputs]).double()
    writes = torch.stack([states[0, last] for states in found.attention_writes]).double()
    scale = rms(model.model.norm, stream[-1])
    folding = subject.weight(model.model.norm).double() / scale
    unembedding = model.lm_head.weight.double()
    target, contrast = (unembedding @ (folding * stream[-1])).topk(2).indices.tolist()
    attention = torch.stack([weights[0, :, : len(tokens)] for weights in found.attention_rows]).double()
    values = torch.stack([each[0, :, : len(tokens)].transpose(0, 1).flatten(1) for each in found.values]).double()
    return States(
        tokens=tuple(tokens),
        target=target,
        contrast=contrast,
        ffn_coefficients=torch.stack([each[0] for each in found.coefficients]).double()[:, :, None] / scale,
        attention_coefficients=_sources(attention, values, model.config.head_dim) / scale,
        ffn_probabilities=_probabilities(unembedding, folding * (stream[:-1] + writes)),
        attention_probabilities=_probabilities(unembedding, folding * stream[:-1]),
    )


def of_oracle(explained: Explained) -> States:
    """The oracle's own prediction, of the most probable token; everything is float64."""
    read, position = explained.unembedding, explained.position
    layers, heads = range(len(explained.layers)), range(explained.weights.heads)
    sources = [[explained.attention_coefficients(layer, head).T for head in heads] for layer in layers]
    target, contrast = explained.oracle.states.logits[position].topk(2).indices.tolist()
    assert target == explained.target
    return States(
        tokens=explained.oracle.token_ids,
        target=target,
        contrast=contrast,
        ffn_coefficients=torch.stack([layer.coefficients[position] for layer in explained.layers])[:, :, None]
        / read.scale,
        attention_coefficients=torch.stack([torch.cat(of_layer) for of_layer in sources]) / read.scale,
        ffn_probabilities=read.log_probabilities(read.bs(explained.ffn_bases())).exp(),
        attention_probabilities=read.log_probabilities(read.bs(explained.attention_bases())).exp(),
    )


def _scale_to(scales: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda norm, args: scales.append(rms(norm, args[0][0, -1].double()))


def _column(scales: list[Tensor]) -> Tensor | float:
    """One number for every layer, [L, 1, 1]; one where there are no norms."""
    return torch.stack(scales)[:, None, None] if scales else 1.0


def _sources(attention: Tensor, values: Tensor, size: int) -> Tensor:
    """alpha * v from attention weights [L, H, T] and values [L, T, K * D], as [L, H * D, T]."""
    layers, heads, length = attention.shape
    split = values.view(layers, length, -1, size).permute(0, 2, 3, 1)
    shared = split.repeat_interleave(heads // split.shape[1], dim=1)
    return (attention[:, :, None] * shared).flatten(1, 2)


def _probabilities(unembedding: Tensor, folded: Tensor) -> Tensor:
    """softmax(W_U (gamma * x) / s), computed in float64 and kept in float32. [L, d] -> [L, V]"""
    return torch.softmax(folded @ unembedding.T, dim=-1).float()
