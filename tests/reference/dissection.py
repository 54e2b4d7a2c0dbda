"""Any causal language model taken apart by how it behaves, in float64, without a word about its family.

Rows of fused projections are found as the columns of their outputs that attention mixes, or that are multiplied into
coefficients; a norm's weight, bias and epsilon are measured by what it returns; factors are
fitted. Everything found is checked against what the model did, so that a wrong guess raises.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.experts import RoutedExperts
from reference.forward import LayerStates, States
from reference.found_ffn import experts_factor_of, ffn_names, ffn_of, find_experts, find_keys, rows_of
from reference.found_norms import measured_norm, no_norm, norm_after, traced
from reference.mixed_heads import Values, find_values
from reference.recording import Call, Recording, in_double, is_linear, matrix, ratio, record, same
from reference.weights import Layer, Norm, Weights

SINKS = "GraniteSWAAttention", "GraniteMoeSWAAttention"
PROBE = (5, 17, 3, 60, 31, 8, 77, 42)
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "multi_head_attention")
NOTHING = torch.empty(0)


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
class Attention:
    """A layer's attention: the output projection, and where the values are."""

    output: nn.Module
    values: Values
    made: int
    """The layer whose input the values are made of."""
    write: Write
    norm: Norm
    value_rows: Tensor

    @property
    def rows(self) -> Tensor:
        """What single neurons write, but for the norm's scale."""
        return self.write.rows(matrix(self.output).T)


@dataclass(frozen=True)
class FeedForward:
    """A layer's feed-forward network: its down projection, its routed experts, or both."""

    down: nn.Module | None
    experts: RoutedExperts | None
    experts_factor: float
    write: Write
    up: Tensor
    gate: Tensor | None
    norm: Norm
    raw_rows: Tensor

    @property
    def rows(self) -> Tensor:
        """What single neurons write, but for the norm's scale."""
        return self.write.rows(self.raw_rows)


@dataclass(frozen=True)
class Parts:
    """One layer's parts, as they were found; each written with a factor."""

    first: nn.Module
    scalar: float
    """What the residual stream is multiplied by at the layer's end."""
    attention: Attention | None
    recurrence: tuple[nn.Module, float] | None
    """The output projection of what mixes positions without attention weights."""
    ffn: FeedForward | None
    also: tuple[nn.Module, float] | None
    """A module whose output is written beside theirs."""

    def weights(self, size: int) -> Layer:
        """What brute force reads; queries, keys and biases are left to the model."""
        attention, ffn, none = self.attention, self.ffn, torch.zeros(0, size, dtype=torch.float64)
        return Layer(
            attention_norm=no_norm(size) if attention is None else attention.norm,
            ffn_norm=no_norm(size) if ffn is None else ffn.norm,
            query=NOTHING,
            query_bias=NOTHING,
            key=NOTHING,
            key_bias=NOTHING,
            value=none if attention is None else attention.value_rows,
            value_bias=NOTHING,
            output=none if attention is None else attention.rows,
            output_bias=NOTHING,
            up=none if ffn is None else ffn.up,
            up_bias=NOTHING,
            gate=none if ffn is None else ffn.gate,
            gate_bias=None,
            down=none if ffn is None else ffn.rows,
            down_bias=NOTHING,
            names=() if ffn is None else ffn_names(ffn.down, ffn.experts),
            values_of=None if attention is None else attention.made,
        )


class Dissection:
    """A model's float64 weights, and its states for any prompt."""

    def __init__(self, model: PreTrainedModel, probe: Sequence[int] = PROBE) -> None:
        self.model = in_double(copy.deepcopy(model))
        self._layers = _layer_modules(self.model)
        recording = record(self.model, probe)
        self._inputs = [_layer_input(recording, layer) for layer in self._layers]
        self._final_norm = _final_norm(recording, self.model)
        self._heads = recording.attentions[0].shape[0]
        self._attends = _attends(recording, self._layers)
        self._sinks = [_sink_module(layer) for layer in self._layers]
        self._parts = self._dissected(recording)
        self.weights = self._weights(recording)

    def states(self, token_ids: Sequence[int]) -> States:
        """Run a prompt."""
        recording = record(self.model, token_ids)
        streams = [self._remaining(n) * recording.of(first).input for n, first in enumerate(self._inputs)]
        streams.append(recording.of(self._final_norm).input)
        layers = [self._layer_states(recording, number, streams) for number in range(len(self._parts))]
        return States(tuple(layers), streams[-1], recording.logits)

    def _layer_states(self, recording: Recording, number: int, streams: list[Tensor]) -> LayerStates:
        parts, scope = self._parts[number], _scope(recording, self._layers[number])
        length, size = streams[number].shape
        pattern = torch.full((self._heads, length, length), torch.nan, dtype=torch.float64)
        values = torch.zeros(self._heads, length, 0, dtype=torch.float64)
        mixed = torch.zeros(length, size, dtype=torch.float64)
        scale, gates = torch.ones(length, dtype=torch.float64), None
        if parts.attention is not None:
            attention, raw = parts.attention, recording.of(parts.attention.output)
            pattern = self._pattern(recording, number)
            values = attention.values(recording).unflatten(1, (self._heads, -1)).transpose(0, 1)
            mixed = mixed + attention.write(recording, raw.output)
            scale = attention.write.scale(raw.output)[:, 0]
            gates = attention.values.gates(recording)
            z = torch.einsum("hts,hsk->thk", pattern, values).flatten(1) * (1 if gates is None else gates)
            assert_same(z, raw.input, "attention")
        if parts.recurrence is not None:
            module, factor = parts.recurrence
            mixed = mixed + factor * recording.of(module).output
        coefficients, ffn = torch.zeros(length, 0, dtype=torch.float64), torch.zeros_like(mixed)
        if parts.ffn is not None:
            given = parts.ffn.down, parts.ffn.experts, scope, parts.ffn.experts_factor
            coefficients, raw_ffn = ffn_of(recording, *given)
            ffn = parts.ffn.write(recording, raw_ffn)
            coefficients = coefficients / parts.ffn.write.scale(raw_ffn)
        if parts.also is not None:
            module, factor = parts.also
            ffn = ffn + factor * recording.of(module).output
        middle = streams[number] + mixed
        assert_same(middle + ffn, streams[number + 1], "the residual stream")
        return LayerStates(
            input=streams[number],
            attention_weights=pattern,
            values=values,
            attention=mixed,
            middle=middle,
            coefficients=coefficients,
            ffn=ffn,
            attention_scale=scale,
            gates=None if gates is None else gates.unflatten(1, (self._heads, -1)).transpose(0, 1),
            ffn_reads_attention=any(same(call.input, middle / self._remaining(number)) for call in scope),
        )

    def _remaining(self, number: int) -> float:
        """What the residual stream is multiplied by from a layer's input on: states are told as they end up."""
        return math.prod(parts.scalar for parts in self._parts[number:])

    def _dissected(self, recording: Recording) -> list[Parts]:
        """From the last layer to the first: what one writes is multiplied by the later ones."""
        found: list[Parts] = []
        for number in reversed(range(len(self._layers))):
            found.insert(0, self._dissect(recording, number, math.prod(parts.scalar for parts in found)))
        return found

    def _dissect(self, recording: Recording, number: int, later: float) -> Parts:
        scope = _scope(recording, self._layers[number])
        size = _size(recording.of(self._inputs[number]).input)
        attention, recurrent, rest = self._sorted(recording, number)
        outputs = [_last_to(size, calls) for calls in (attention, recurrent)]
        experts = find_experts(rest)
        downs = [c for c in rest if is_linear(c.module) and _size(c.output) == size != _size(c.input)]
        down = downs[0].module if downs else None
        raw = [None if call is None else call.output for call in outputs]
        factor = self._experts_factor(recording, number, down, experts, raw)
        raw.append(None if down is experts is None else ffn_of(recording, down, experts, scope, factor)[1])
        scalar, writes, also = self._writes(recording, number, raw, rest, later)
        return Parts(
            first=self._inputs[number],
            scalar=scalar,
            attention=None
            if outputs[0] is None
            else self._attention(recording, number, outputs[0], attention, writes[0]),
            recurrence=None if outputs[1] is None else (outputs[1].module, writes[1].factor),
            ffn=None
            if raw[2] is None
            else FeedForward(
                down,
                experts,
                factor,
                writes[2],
                *find_keys(scope, rest, down, experts, size),
                rows_of(recording, down, experts, scope),
            ),
            also=also,
        )

    def _sorted(self, recording: Recording, number: int) -> tuple[list[Call], list[Call], list[Call]]:
        """A layer's calls: those of attention, those of what else mixes positions, which convolves them, and others."""
        layer, attention, recurrent = self._layers[number], [], []
        scope = _scope(recording, layer)
        for name, child in layer.named_children():
            inside = set(child.modules())
            calls = [call for call in scope if call.module in inside]
            if self._attends[number] and (name in ATTENTIONS or inside & recording.attending):
                attention += calls
            elif any(isinstance(module, nn.Conv1d) for module in inside):
                recurrent += calls
        rest = [call for call in scope if call not in attention and call not in recurrent]
        return attention, recurrent, rest

    def _writes(
        self, recording: Recording, number: int, raw: list[Tensor | None], rest: list[Call], later: float
    ) -> tuple[float, list[Write | None], tuple[nn.Module, float] | None]:
        """What multiplies the residual stream, what stands between it and what a layer's parts give, and what else is
        written, by what the next layer's input is.
        """
        scope = _scope(recording, self._layers[number])
        norms = [None if given is None else norm_after(scope, given) for given in raw]
        written = [norm.output if norm else given for norm, given in zip(norms, raw, strict=True)]
        before, after = self._around(recording, number)
        (scalar, *fitted), also = _fitted(after, [before, *(each for each in written if each is not None)], rest)
        factors = iter(later * factor for factor in fitted)
        writes = [
            None
            if given is None
            else Write(norm and norm.module, norm and measured_norm(norm.module, _size(given)), next(factors))
            for norm, given in zip(norms, raw, strict=True)
        ]
        return scalar, writes, None if also is None else (also.module, next(factors))

    def _experts_factor(
        self,
        recording: Recording,
        number: int,
        down: nn.Module | None,
        experts: RoutedExperts | None,
        others: list[Tensor | None],
    ) -> float:
        """How much more of the routed experts' sum than of the shared expert's output is in what a layer writes."""
        scope = _scope(recording, self._layers[number])
        if down is None or experts is None or norm_after(scope, ffn_of(recording, down, experts, scope)[1]):
            return 1.0
        before, after = self._around(recording, number)
        there = [each for each in others if each is not None]
        return experts_factor_of(recording, down, experts, scope, there, after - before)

    def _attention(self, recording: Recording, number: int, output: Call, calls: list[Call], write: Write) -> Attention:
        """The values are made in the layer's own attention, or in a layer before it."""
        pattern, size = self._pattern(recording, number), _size(output.output)
        for made in (number, *reversed(range(number))):
            scope = _scope(recording, self._layers[made])
            among = [call for call in (calls if made == number else scope) if call is not output]
            values = find_values(pattern, output.input, self._heads, among, self._clipped)
            if values is not None:
                rows, read = values.rows(scope)
                rows, norm = traced(scope, rows, read, size)
                return Attention(output.module, values, made, write, norm, rows)
        raise AssertionError("no module gives the values")

    def _around(self, recording: Recording, number: int) -> tuple[Tensor, Tensor]:
        following = [*self._inputs, self._final_norm][number + 1]
        return recording.of(self._inputs[number]).input, recording.of(following).input

    def _pattern(self, recording: Recording, number: int) -> Tensor:
        """Attention weights as applied: Granite's sinks shrink what a head mixes and leave its weights alone."""
        pattern = recording.attentions[sum(self._attends[:number])]
        attention = self._sinks[number]
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
        config = self.model.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        logits = recording.logits if cap is None else cap * torch.atanh(recording.logits / cap)
        plain = recording.of(self._final_norm).output @ matrix(unembedding).T
        bias = torch.zeros(len(plain.T), dtype=torch.float64) if unembedding.bias is None else unembedding.bias.detach()
        plain = plain + bias
        factor = round(((logits * plain).sum() / plain.square().sum()).item(), 5)
        assert_same(factor * plain, logits, "logits")
        layers = tuple(parts.weights(_size(matrix(unembedding))) for parts in self._parts)
        return Weights(
            heads=self._heads,
            key_value_heads=self._heads,
            head_size=max(len(layer.output) for layer in layers) // self._heads,
            embedding=torch.empty(0),
            positions=None,
            rotary=None,
            layers=layers,
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


def _attends(recording: Recording, layers: list[nn.Module]) -> list[bool]:
    """Whether each layer has attention weights: all do, or those that returned some."""
    if len(recording.attentions) == len(layers):
        return [True] * len(layers)
    found = [bool(set(layer.modules()) & recording.attending) for layer in layers]
    assert sum(found) == len(recording.attentions)
    return found


def _last_to(size: int, calls: list[Call]) -> Call | None:
    """The last projection to vectors of a size."""
    found = [call for call in calls if is_linear(call.module) and size == _size(call.output)]
    return found[-1] if found else None


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


def _fitted(after: Tensor, parts: list[Tensor], rest: list[Call]) -> tuple[list[float], Call | None]:
    """What the layer's input and its writes are multiplied by to give the next one's input.

    With a further write where those do not, and its factor.
    """
    further = [call for call in reversed(rest) if not is_linear(call.module) and call.output.shape == after.shape]
    for call in (None, *further):
        every = torch.stack([each.flatten() for each in (parts if call is None else [*parts, call.output])], 1)
        factors = torch.linalg.lstsq(every, after.flatten()[:, None]).solution
        if same(every @ factors, after.flatten()[:, None]):
            return [round(factor, 5) for factor in factors[:, 0].tolist()], call
    raise AssertionError("no writes give the next layer's input")
