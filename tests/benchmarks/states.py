"""One recorded forward pass by hooks on a plain Llama model, written apart from the product's."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class States:
    """At the last position, per layer: what attention and FFN are added to, and the neurons' coefficients."""

    inputs: list[Tensor]
    """x_l, [d]"""
    residuals: list[Tensor]
    """r_l, [d]"""
    ffn: list[Tensor]
    """m, [N, 1]"""
    attention: list[Tensor]
    """alpha v, [H D, T]"""
    scale: Tensor
    """Of the final norm."""


@torch.inference_mode()
def record(model, ids):
    """Run the model with transformers' eager attention, which returns its weights."""
    seen = {}
    with _hooks(model, seen), _eager(model):
        weights = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    layers = range(len(model.model.layers))
    size = model.model.layers[0].self_attn.head_dim
    final = seen["final"][0, -1].float()
    return States(
        inputs=[seen["input", layer][0, -1].float() for layer in layers],
        residuals=[seen["residual", layer][0, -1].float() for layer in layers],
        ffn=[seen["ffn", layer][0, -1].float()[:, None] for layer in layers],
        attention=[
            _source_values(weights[layer][0, :, -1].float(), seen["value", layer][0].float(), size) for layer in layers
        ],
        scale=(final.square().mean() + model.model.norm.variance_epsilon).sqrt(),
    )


def _source_values(weights, values, size):
    """alpha [H, T] times v [T, K * D], as [H * D, T]."""
    per_head = values.unflatten(1, (-1, size)).permute(1, 2, 0)
    return (weights[:, None] * per_head.repeat_interleave(len(weights) // len(per_head), 0)).flatten(0, 1)


@contextmanager
def _eager(model):
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


@contextmanager
def _hooks(model, seen):
    handles = [model.model.norm.register_forward_pre_hook(_input(seen, "final"))]
    for number, layer in enumerate(model.model.layers):
        handles += [
            layer.input_layernorm.register_forward_pre_hook(_input(seen, ("input", number))),
            layer.post_attention_layernorm.register_forward_pre_hook(_input(seen, ("residual", number))),
            layer.mlp.down_proj.register_forward_pre_hook(_input(seen, ("ffn", number))),
            layer.self_attn.v_proj.register_forward_hook(_output(seen, ("value", number))),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(seen, name):
    def hook(_module, args):
        seen[name] = args[0]

    return hook


def _output(seen, name):
    def hook(_module, _args, output):
        seen[name] = output

    return hook
