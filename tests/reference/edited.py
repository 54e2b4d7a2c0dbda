"""Edited copies of a model: what interventions must agree with, by weights or by hooks of its own, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.requests import Intervention, LayerPartKind, Scale, SetTo
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Places = dict[tuple[int, LayerPartKind], list[int]]


def output_of(model: PreTrainedModel, layer: int, kind: LayerPartKind) -> nn.Module:
    """The output projection of attention or of the FFN, in models of the Llama and GPT-2 kinds."""
    if hasattr(model, "transformer"):
        block = model.transformer.h[layer]
        return block.mlp.c_proj if kind is LayerPartKind.FFN else block.attn.c_proj
    block = model.model.layers[layer]
    return block.mlp.down_proj if kind is LayerPartKind.FFN else block.self_attn.o_proj


def columns(module: nn.Module) -> Tensor:
    """What each input of a projection is multiplied by, inputs first; changing it changes the module."""
    return module.weight.data if isinstance(module, Conv1D) else module.weight.data.T


def places(model: PreTrainedModel, intervention: Intervention) -> Places:
    """The inputs that are changed in each output projection."""
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    found: Places = {}
    for neuron in intervention.neurons:
        kind = LayerPartKind.FFN if isinstance(neuron, FfnNeuron) else LayerPartKind.ATTENTION
        index = neuron.head * size + neuron.index if isinstance(neuron, AttentionNeuron) else neuron.index
        found.setdefault((neuron.layer, kind), []).append(index)
    for head in intervention.heads:
        found.setdefault((head.layer, LayerPartKind.ATTENTION), []).extend(head.head * size + k for k in range(size))
    for part in intervention.layers:
        count = len(columns(output_of(model, part.layer, part.kind)))
        found.setdefault((part.layer, part.kind), []).extend(range(count))
    return {part: sorted(set(indices)) for part, indices in found.items()}


def edited_copy(model: PreTrainedModel, interventions: Sequence[Intervention]) -> PreTrainedModel:
    """A copy whose weights are zeroed or scaled."""
    edited = copy.deepcopy(model)
    for intervention in interventions:
        operation = intervention.operation
        factor = operation.factor if isinstance(operation, Scale) else 0.0
        for (layer, kind), indices in places(model, intervention).items():
            columns(output_of(edited, layer, kind))[indices] *= factor
    return edited


def changed_logits(model: PreTrainedModel, token_ids: Sequence[int], interventions: Sequence[Intervention]) -> Tensor:
    """The logits after the last token, [V], of a float64 copy whose projections' inputs are changed on their way."""
    double = copy.deepcopy(model).double()
    double.set_attn_implementation("eager")
    with ExitStack() as stack, torch.no_grad():
        for intervention in interventions:
            for (layer, kind), indices in places(model, intervention).items():
                hook = _changing(intervention, indices)
                stack.callback(output_of(double, layer, kind).register_forward_pre_hook(hook).remove)
        return double(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1]


def _changing(intervention: Intervention, indices: list[int]) -> object:
    def hook(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        changed = args[0].clone()
        positions = [-1] if intervention.explained_position_only else range(changed.shape[1])
        for position in positions:
            for index in indices:
                changed[0, position, index] = _new(intervention, changed[0, position, index])
        return (changed,)

    return hook


def _new(intervention: Intervention, value: Tensor) -> Tensor | float:
    match intervention.operation:
        case SetTo(new):
            return new
        case Scale(factor):
            return value * factor
    return 0.0
