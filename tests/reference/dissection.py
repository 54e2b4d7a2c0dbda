"""Any causal language model taken apart by how it behaves, in float64, without a word about its family.

Rows of fused projections are found as the columns of their outputs that attention mixes, or that are multiplied into
coefficients; a norm's weight, bias and epsilon are measured by what it returns; factors are
fitted. Everything found is checked against what the model did, so that a wrong guess raises.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.experts import RoutedExperts
from reference.forward import LayerStates, States
from reference.found_ffn import experts_factor_of, ffn_names, ffn_of, find_experts, find_keys
from reference.found_norms import measured_norm, traced
from reference.mixed_heads import Values, find_values
from reference.recording import Call, Recording, in_double, is_linear, matrix, ratio, record, same
from reference.weights import Layer, Norm, Weights

SINKS = "GraniteSWAAttention", "GraniteMoeSWAAttention"
PROBE = (5, 17, 3, 60, 31, 8, 77, 42)
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "multi_head_attention")


@dataclass(frozen=True)
class Write:
    """What a block writes: its projections, the norm after them or None, and a factor."""

    norm_module: nn.Module | None
    norm: Norm | None
    factor: float

    def rows(self, rows: Tensor) -> Tensor:
        """What single neurons write, but for the norm's scale."""
        return self.factor * (rows if self.norm is None else self.norm.fold(rows))

    def scale(self, raw: Tensor) -> Tensor:
        """The norm's scale at every position, [T, 1]."""
        return torch.ones(len(raw), 1, dtype=torch.float64) if self.norm is None else self.norm.scale(raw)

    def __call__(self, recording: Recording, raw: Tensor) -> Tensor:
        return self.factor * (raw if self.norm_module is None else recording.of(self.norm_module).output)


@dataclass(frozen=True)
class Parts:
    """One layer's modules, as they were found."""

    first: nn.Module
    output: nn.Module
    values: Values
    attention_write: Write
    down: nn.Module | None
    experts: RoutedExperts | None
    experts_factor: float
    ffn_write: Write
    weights: Layer


class Dissection:
    """A model's float64 weights, and its states for any prompt."""

    def __init__(self, model: PreTrainedModel, probe: Sequence[int] = PROBE) -> None:
        self.model = in_double(copy.deepcopy(model))
        self._layers = _layer_modules(self.model)
        recording = record(self.model, probe)
        self._inputs = [_layer_input(recording, layer) for layer in self._layers]
        self._final_norm = _final_norm(recording, self.model)
        self._heads = recording.attentions[0].shape[0]
        self._sinks = [_sink_module(layer) for layer in self._layers]
        self._parts = [self._dissect(recording, number) for number in range(len(self._layers))]
        self.weights = self._weights(recording)

    def states(self, token_ids: Sequence[int]) -> States:
        """Run a prompt."""
        recording = record(self.model, token_ids)
        streams = [recording.of(first).input for first in self._inputs]
        streams.append(recording.of(self._final_norm).input)
        layers = [self._layer_states(recording, number, streams) for number in range(len(self._parts))]
        return States(tuple(layers), streams[-1], recording.logits)

    def _layer_states(self, recording: Recording, number: int, streams: list[Tensor]) -> LayerStates:
        parts, pattern = self._parts[number], self._pattern(recording, number)
        raw = recording.of(parts.output).output
        values = parts.values(recording).unflatten(1, (self._heads, -1)).transpose(0, 1)
        attention = parts.attention_write(recording, raw)
        scope = _scope(recording, self._layers[number])
        coefficients, ffn_raw = ffn_of(recording, parts.down, parts.experts, scope, parts.experts_factor)
        ffn = parts.ffn_write(recording, ffn_raw)
        middle = streams[number] + attention
        gates = parts.values.gates(recording)
        z = torch.einsum("hts,hsk->thk", pattern, values).flatten(1) * (1 if gates is None else gates)
        assert_same(z, recording.of(parts.output).input, "attention")
        assert_same(streams[number] + attention + ffn, streams[number + 1], "the residual stream")
        return LayerStates(
            input=streams[number],
            attention_weights=pattern,
            values=values,
            attention=attention,
            middle=middle,
            coefficients=coefficients / parts.ffn_write.scale(ffn_raw),
            ffn=ffn,
            gates=None if gates is None else gates.unflatten(1, (self._heads, -1)).transpose(0, 1),
            attention_scale=parts.attention_write.scale(raw)[:, 0],
            ffn_reads_attention=any(same(call.input, middle) for call in scope),
        )

    def _dissect(self, recording: Recording, number: int) -> Parts:
        layer = self._layers[number]
        scope = _scope(recording, layer)
        attention_names = tuple(f"{_name(self.model, layer)}.{name}." for name in ATTENTIONS)
        attention = [call for call in scope if call.name.startswith(attention_names)]
        rest = [call for call in scope if call not in attention]
        size = _size(recording.of(self._inputs[number]).input)
        output = [call for call in attention if is_linear(call.module) and size == _size(call.output)][-1]
        pattern = self._pattern(recording, number)
        values = find_values(pattern, output.input, self._heads, attention, self._clipped)
        experts = find_experts(rest)
        downs = [c for c in rest if is_linear(c.module) and _size(c.output) == size != _size(c.input)]
        down = downs[-1].module if downs else None
        before, after = self._around(recording, number)
        experts_factor = 1.0
        _, ffn_raw = ffn_of(recording, down, experts, scope)
        if down is not None and experts is not None and _norm_after(scope, ffn_raw) is None:
            experts_factor = experts_factor_of(recording, down, experts, scope, output.output, after - before)
            _, ffn_raw = ffn_of(recording, down, experts, scope, experts_factor)
        norms = [_norm_after(scope, raw) for raw in (output.output, ffn_raw)]
        written = [norm.output if norm else raw for norm, raw in zip(norms, (output.output, ffn_raw), strict=True)]
        factors = torch.linalg.lstsq(
            torch.stack([each.flatten() for each in written], 1), (after - before).flatten()[:, None]
        )
        writes = [
            Write(norm and norm.module, norm and measured_norm(norm.module, size), round(factor, 5))
            for norm, factor in zip(norms, factors.solution[:, 0].tolist(), strict=True)
        ]
        up, gate, ffn_norm = find_keys(scope, rest, down, experts, size)
        rows = values.factor * matrix(values.call.module)[values.columns]
        value_rows, attention_norm = traced(scope, rows, values.call.input, size)
        rows = [] if down is None else [matrix(down).T]
        rows += [] if experts is None else [experts.down()]
        return Parts(
            first=self._inputs[number],
            output=output.module,
            values=values,
            attention_write=writes[0],
            down=down,
            experts=experts,
            experts_factor=experts_factor,
            ffn_write=writes[1],
            weights=_as_layer(
                attention_norm,
                ffn_norm,
                value_rows,
                writes[0].rows(matrix(output.module).T),
                up,
                gate,
                writes[1].rows(torch.cat(rows)),
                ffn_names(down, experts),
            ),
        )

    def _around(self, recording: Recording, number: int) -> tuple[Tensor, Tensor]:
        following = [*self._inputs, self._final_norm][number + 1]
        return recording.of(self._inputs[number]).input, recording.of(following).input

    def _pattern(self, recording: Recording, number: int) -> Tensor:
        """Attention weights as applied: Granite's sinks shrink what a head mixes and leave its weights alone."""
        pattern, attention = recording.attentions[number], self._sinks[number]
        if attention is None:
            return pattern
        mixed = recording.of(attention.o_proj).input.unflatten(1, (self._heads, -1))
        values = recording.of(attention.v_proj).output.unflatten(1, (-1, mixed.shape[2]))
        whole = torch.einsum("hts,shk->thk", pattern, values.repeat_interleave(self._heads // values.shape[1], 1))
        return pattern * ((mixed * whole).sum(-1) / whole.square().sum(-1)).T[:, :, None]

    def _clipped(self, values: Tensor) -> Tensor:
        config = self.model.config
        bound = getattr(config, "clip_qkv", None) or getattr(getattr(config, "attn_config", None), "clip_qkv", None)
        return values if bound is None else values.clamp(-bound, bound)

    def _weights(self, recording: Recording) -> Weights:
        unembedding = self.model.get_output_embeddings()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        logits = recording.logits if cap is None else cap * torch.atanh(recording.logits / cap)
        plain = recording.of(self._final_norm).output @ matrix(unembedding).T
        bias = torch.zeros(len(plain.T), dtype=torch.float64) if unembedding.bias is None else unembedding.bias.detach()
        plain = plain + bias
        factor = round(((logits * plain).sum() / plain.square().sum()).item(), 5)
        assert_same(factor * plain, logits, "logits")
        return Weights(
            heads=self._heads,
            key_value_heads=self._heads,
            head_size=len(self._parts[0].weights.output) // self._heads,
            embedding=torch.empty(0),
            positions=None,
            rotary=None,
            layers=tuple(parts.weights for parts in self._parts),
            activation=torch.nn.functional.silu,
            final_norm=measured_norm(self._final_norm, len(matrix(unembedding).T)),
            unembedding=factor * matrix(unembedding),
            unembedding_bias=factor * bias,
            cap=cap,
        )


def assert_same(a: Tensor, b: Tensor, what: str) -> None:
    """What was found must be what the model did."""
    error = ((a - b).abs().max() / b.abs().max()).item()
    assert error < 1e-5, f"{what}: off by {error:.1e}"


def _sink_module(layer: nn.Module) -> nn.Module | None:
    return next((module for module in layer.modules() if type(module).__name__ in SINKS), None)


def _layer_modules(model: PreTrainedModel) -> list[nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0])


def _name(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _scope(recording: Recording, layer: nn.Module) -> list[Call]:
    inside = set(layer.modules())
    return [call for call in recording.calls if call.module in inside]


def _layer_input(recording: Recording, layer: nn.Module) -> nn.Module:
    """The first module that reads the residual stream: it takes in what the layer does."""
    return _scope(recording, layer)[0].module


def _final_norm(recording: Recording, model: PreTrainedModel) -> nn.Module:
    """The last module before the unembedding; some models divide what it gives."""
    unembedding = recording.of(model.get_output_embeddings())
    return [call for call in recording.calls if ratio(unembedding.input, call.output)][-1].module


def _size(tensor: Tensor) -> int:
    return tensor.shape[-1]


def _norm_after(scope: list[Call], raw: Tensor) -> Call | None:
    found = [call for call in scope if not is_linear(call.module) and same(call.input, raw)]
    normed = [call for call in found if call.output.shape == raw.shape and not same(call.output, raw)]
    return normed[0] if normed else None


def _as_layer(
    attention_norm: Norm,
    ffn_norm: Norm,
    value: Tensor,
    output: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    names: tuple[int, ...],
) -> Layer:
    """What brute force reads; queries, keys and biases are left to the model."""
    nothing = torch.empty(0)
    return Layer(
        attention_norm=attention_norm,
        ffn_norm=ffn_norm,
        query=nothing,
        query_bias=nothing,
        key=nothing,
        key_bias=nothing,
        value=value,
        value_bias=nothing,
        output=output,
        output_bias=nothing,
        up=up,
        up_bias=nothing,
        gate=gate,
        gate_bias=None,
        down=down,
        down_bias=nothing,
        names=names,
    )
