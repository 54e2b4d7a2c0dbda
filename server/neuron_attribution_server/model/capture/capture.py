"""One forward pass with everything that scoring needs recorded, without patching the model.

The model's own fused attention runs; beside it only the attention rows of the explained positions are computed, so that
no [positions, positions] matrix exists (but where attention has soft-caps or sinks, which fused attention has not, and
where a model's attention cannot be replaced). Batches are padded on the right, which a causal model never sees.

On a CPU a sequence goes through a batch bit for bit as it goes alone. Matrix products round each row alike whatever
the number of rows, but for a handful of rows (and see math_libraries); fused attention does not, so that each sequence
attends by itself. Recurrent mixers round otherwise in a longer batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from neuron_attribution_server.model.architectures.feed_forward import Routing, WeighedExperts
from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.architectures.norms import NormView
from neuron_attribution_server.model.architectures.packed.modules import has_packed_experts
from neuron_attribution_server.model.attribution.host import is_host, on_device
from neuron_attribution_server.model.capture.attention import attend, sparse_mask
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows, Kept
from neuron_attribution_server.model.capture.edits import Edits, first_input

ATTENTION_KEY = "neuron_attribution"
SMALLEST_PASS = 16
"""Positions in the smallest pass: products of fewer than 12 rows rounded otherwise (MKL 2024.2 with AVX-512)."""

EVERYTHING = Kept()

_RECORDING: ContextVar[CapturedStates | None] = ContextVar("recording", default=None)

Hook = Callable[..., Any]


def prepare_model(view: ModelView) -> None:
    """Make the model's attention and experts recordable.

    Without the mask under the same key causality would be lost in silence.
    """
    AttentionInterface.register(ATTENTION_KEY, _recordable_attention)
    AttentionMaskInterface.register(ATTENTION_KEY, sdpa_mask)
    ExpertsInterface.register(ATTENTION_KEY, _recordable_experts)
    set_recordable(view)


def set_recordable(view: ModelView) -> None:
    """Put the recordable attention and experts in."""
    if view.spec.uses_attention_interface:
        view.model.set_attn_implementation(ATTENTION_KEY)
    else:
        view.model.config._attn_implementation = "eager"  # such models refuse to be told by the method above
    if view.uses_experts_interface:
        view.model.set_experts_implementation(ATTENTION_KEY)


def set_plain(view: ModelView) -> None:
    """Put transformers' plain attention and experts in, which share nothing with the recording."""
    if view.spec.uses_attention_interface:
        view.model.set_attn_implementation("eager")
    if view.uses_experts_interface:
        view.model.set_experts_implementation("eager")


def capture(
    view: ModelView,
    sequences: Sequence[Sequence[int]],
    rows: ExplainedRows,
    edits: Edits | None = None,
    kept: Kept = EVERYTHING,
) -> CapturedStates:
    """Run the model on token ids and return what it went through. The unembedding is left to scoring."""
    tokens = _padded(sequences, 1 if view.depends_on_length else SMALLEST_PASS, view.device)
    lengths = tuple(len(sequence) for sequence in sequences)
    shape, copies = tuple(tokens.shape), view.spec.adds_in_place
    states = CapturedStates(rows, lengths, shape, view.heads, kept, copies, edits)
    wanted = {} if view.spec.uses_attention_interface else {"output_attentions": True}
    edited = nullcontext() if edits is None else edits.made(lengths)  # before the recording, which sees what is changed
    with torch.inference_mode(), edited, _recording(view, states):
        view.body(input_ids=tokens, use_cache=False, **wanted)
        _add_routed_coefficients(view, states)
    return states


def _padded(sequences: Sequence[Sequence[int]], smallest: int, device: torch.device) -> Tensor:
    """Token ids [B, T], padded on the right with id 0: a causal model never looks there."""
    length = max(*map(len, sequences), -(-smallest // len(sequences)))
    return on_device(np.array([[*sequence, *[0] * (length - len(sequence))] for sequence in sequences]), device)


@contextmanager
def _recording(view: ModelView, states: CapturedStates) -> Iterator[None]:
    token = _RECORDING.set(states)
    handles: list[Any] = []
    try:
        for module, before, after in _hooks(view, states):
            if before is not None:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(after))
        yield
    finally:
        _RECORDING.reset(token)
        for handle in handles:
            handle.remove()


def _hooks(view: ModelView, states: CapturedStates) -> Iterator[tuple[nn.Module, Hook | None, Hook | None]]:
    """Each module to record at, and what to do before and after it runs."""
    yield view.final_norm_module, _final_to(states, len(view.layers)), None
    for number, layer in enumerate(view.layers):
        yield layer.module, _input_to(view, layer, states), None
        if layer.has_attention:
            yield layer.attention_output, _head_outputs_to(states), None
            for module, factor in layer.attention_write_modules[1:]:
                yield module, None, _beside_to(states, number, factor)
        ffn = [(module, layer.ffn_write.multiplier) for module in layer.ffn_write_modules]
        yield from _write_hooks(layer.attention_write_modules, states, states.attention_writes)
        yield from _write_hooks(ffn, states, states.ffn_writes)
        yield from _scale_hooks(number, layer, states)
        if layer.ffn.experts is not None:
            states.experts[layer.ffn.experts.module] = number
            states.coefficients.append(torch.empty(0))
            if isinstance(layer.ffn.experts, WeighedExperts):
                yield layer.ffn.experts.router, None, _routing_to(states, number, layer.ffn.experts)
        elif layer.ffn.dense is not None:
            yield layer.ffn.dense.output, _numbered_rows_to(states.coefficients, number, states), None
        else:
            states.coefficients.append(torch.zeros(len(states.rows.sequences), 0, device=view.device))
        if layer.has_attention and layer.gate_module is not None:
            yield layer.gate_module, None, _gates_to(states, layer)
        if layer.has_attention and layer.mixed_norm_module is not None:
            yield layer.mixed_norm_module, _norm_gates_to(states, layer), None
        if layer.has_attention and layer.attention_weights_module is not None:
            yield layer.value_module, None, _values_to(states, layer)
            yield layer.attention_weights_module, None, _weights_to(states)


def _write_hooks(
    modules: Sequence[tuple[nn.Module, float]], states: CapturedStates, destination: list[Tensor]
) -> Iterator[tuple[nn.Module, None, Hook]]:
    """What is written is the sum of what the modules return, times a factor each."""
    started: list[int] = []
    for module, factor in modules:
        yield module, None, _output_to(destination, factor, states, started)


def _scale_hooks(number: int, layer: LayerView, states: CapturedStates) -> Iterator[tuple[nn.Module, Hook, None]]:
    """The scales of norms between a block, or a part of it, and the residual stream, at every position."""
    for module, norm in layer.part_writes if layer.ffn.experts is not None else ():
        yield module, _scale_to(states, states.part_scales.setdefault(number, []), norm), None
    if layer.attention_write.norm is not None:
        module, _ = layer.attention_write_modules[0]
        yield module, _scale_to(states, states.attention_scales, layer.attention_write.norm), None
    if layer.ffn_write.norm is not None:
        yield layer.ffn_write_modules[0], _scale_to(states, states.ffn_scales, layer.ffn_write.norm), None


def _input_to(view: ModelView, layer: LayerView, states: CapturedStates) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = first_input(args, kwargs)
        stream = states.stream(read)
        states.inputs.append(stream if layer.remaining == 1 else stream * layer.remaining)
        states.leave_out(view, layer, states.here(read))

    return hook


def _final_to(states: CapturedStates, layers: int) -> Hook:
    """The input of the final norm after the last layer: some models norm the embedding with it as well."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(states.inputs) == layers:
            states.inputs.append(states.stream(first_input(args, kwargs)))

    return hook


def _head_outputs_to(states: CapturedStates) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mixed = states.rows.of(states.by_position(first_input(args, kwargs)))
        states.head_outputs.append(states.heads.of_heads(mixed))

    return hook


def _numbered_rows_to(destination: list[Tensor], number: int, states: CapturedStates) -> Hook:
    destination.append(torch.empty(0))

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        coefficients = states.by_position(first_input(args, kwargs))
        destination[number] = states.rows.of(coefficients)
        if states.kept.coefficients:
            states.every_coefficient[number] = states.here(coefficients)

    return hook


def _scale_to(states: CapturedStates, destination: list[Tensor], norm: NormView) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        destination.append(states.here(norm.scale(states.by_position(first_input(args, kwargs)).float())))

    return hook


def _output_to(destination: list[Tensor], multiplier: float, states: CapturedStates, started: list[int]) -> Hook:
    """The first that runs of those that write together starts their sum."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 - a tensor, or the first
        written = states.stream(states.by_position(output if isinstance(output, Tensor) else output[0]))
        if multiplier != 1:
            written = written * multiplier
        elif states.copies:
            written = written.clone()
        if started:
            destination[-1] = destination[-1] + written
        else:
            destination.append(written)
            started.append(len(destination))

    return hook


def _beside_to(states: CapturedStates, number: int, factor: float) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        states.beside_attention[number] = states.rows.of(states.by_position(output)) * factor

    return hook


def _values_to(states: CapturedStates, layer: LayerView) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        if states.kept.sources:
            states.values.append(states.heads.of_values(states.here(layer.projected_values(output))))

    return hook


def _gates_to(states: CapturedStates, layer: LayerView) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        states.gates.append(states.heads.of_heads(layer.gates_of(states.rows.of(states.by_position(output)))))

    return hook


def _norm_gates_to(states: CapturedStates, layer: LayerView) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mixed = states.rows.of(states.by_position(first_input(args, kwargs))).float()
        states.gates.append(states.heads.of_heads(layer.norm_gates(mixed)))

    return hook


def _weights_to(states: CapturedStates) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        if states.kept.sources:
            states.attention_rows.append(states.rows.of(output[1].transpose(1, 2)).float())
        return (output[0], None, *output[2:])  # or the model would keep every layer's

    return hook


def _routing_to(states: CapturedStates, number: int, experts: WeighedExperts) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        states.routings[number] = experts.routing(states.here(states.by_position(output[0])))

    return hook


def _recordable_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    states = _RECORDING.get()
    chosen = {name: kwargs.pop(name, None) for name in ("indices", "block_indices")}
    attention_mask = sparse_mask(module, query, key, attention_mask, **chosen)
    lengths = [query.shape[2]] * len(query)
    if states is not None:
        states.record_attention(query, key, value, attention_mask, scaling, **kwargs)
        lengths = list(states.lengths)
    if not is_host(query.device) or lengths == [query.shape[2]]:
        return attend(module, query, key, value, attention_mask, scaling, **kwargs), None
    output = query.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[3])
    mask = None if attention_mask is None else attention_mask.expand(len(query), -1, -1, -1)
    for sequence, length in enumerate(lengths):
        one, seen = slice(sequence, sequence + 1), key.shape[2] - query.shape[2] + length
        output[one, :length] = attend(
            module,
            query[one, :, :length],
            key[one, :, :seen],
            value[one, :, :seen],
            None if mask is None else mask[one, :, :length, :seen],
            scaling,
            **kwargs,
        )
    return output, None


def _recordable_experts(module: Any, hidden_states: Tensor, indices: Tensor, weights: Tensor) -> Tensor:  # noqa: ANN401
    """The experts' own computation; where tokens go is recorded."""
    states = _RECORDING.get()
    if states is not None:
        routing = Routing(states.here(states.by_position(indices)), states.here(states.by_position(weights)))
        states.routings[states.experts[module]] = routing
    if hidden_states.device.type == "cuda" and not has_packed_experts(module):
        output: Tensor = grouped_mm_experts_forward(module, hidden_states, indices, weights)
    else:
        output = type(module).forward.__wrapped__(module, hidden_states, indices, weights)
    return output


def _add_routed_coefficients(view: ModelView, states: CapturedStates) -> None:
    """The coefficients of layers with experts, at the explained rows: transformers has no module that takes them in."""
    for number in states.routings:
        states.coefficients[number] = states.ffn_coefficients(view, number)
