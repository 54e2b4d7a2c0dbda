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
from reference.recording import CLOSE, Call, Recording, columns, in_double, is_experts, is_linear, matrix, record, same
from reference.weights import Layer, Norm, Weights

PROBE = (5, 17, 3, 60, 31, 8, 77, 42)
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")


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
class Also:
    """A module whose output is written beside attention's and the FFN's, and a factor."""

    module: nn.Module
    factor: float


@dataclass(frozen=True)
class Parts:
    """One layer's modules, as they were found."""

    first: nn.Module
    output: nn.Module
    value: nn.Module
    value_columns: list[int]
    scalar: float
    """What the residual stream is multiplied by at the layer's end."""
    attention_write: Write
    down: nn.Module | None
    experts: RoutedExperts | None
    ffn_write: Write
    also: Also | None
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
        parts, pattern = self._parts[number], self._pattern(recording, number)
        raw = recording.of(parts.output).output
        values = self._clipped(recording.of(parts.value).output.flatten(1)[:, parts.value_columns])
        values = values.unflatten(1, (self._heads, -1)).transpose(0, 1)
        attention = parts.attention_write(recording, raw)
        coefficients, ffn_raw = _ffn(recording, parts.down, parts.experts, _scope(recording, self._layers[number]))
        ffn = parts.ffn_write(recording, ffn_raw)
        if parts.also is not None:
            ffn = ffn + parts.also.factor * recording.of(parts.also.module).output
        middle = streams[number] + attention
        z = torch.einsum("hts,hsk->thk", pattern, values).flatten(1)
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
            attention_scale=parts.attention_write.scale(raw)[:, 0],
            ffn_reads_attention=any(
                same(call.input, middle / self._remaining(number)) for call in _scope(recording, self._layers[number])
            ),
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
        layer = self._layers[number]
        scope = _scope(recording, layer)
        attention_names = tuple(f"{_name(self.model, layer)}.{name}." for name in ATTENTIONS)
        attention = [call for call in scope if call.name.startswith(attention_names)]
        rest = [call for call in scope if call not in attention]
        size = _size(recording.of(self._inputs[number]).input)
        output = [call for call in attention if is_linear(call.module) and size == _size(call.output)][-1]
        value, places, made = self._find_values(recording, number, output, attention)
        experts = _find_experts(rest)
        downs = [c for c in rest if is_linear(c.module) and _size(c.output) == size != _size(c.input)]
        down = downs[0].module if downs else None
        _, ffn_raw = _ffn(recording, down, experts, scope)
        before, after = self._around(recording, number)
        norms = [_norm_after(scope, raw) for raw in (output.output, ffn_raw)]
        written = [norm.output if norm else raw for norm, raw in zip(norms, (output.output, ffn_raw), strict=True)]
        (scalar, *factors), also = _fitted(after, [before, *written], rest)
        writes = [
            Write(norm and norm.module, norm and measured_norm(norm.module, size), later * factor)
            for norm, factor in zip(norms, factors, strict=False)
        ]
        up, gate, ffn_norm = _find_keys(scope, rest, down, experts, size)
        made_scope = _scope(recording, self._layers[made])
        source, value_rows = _value_rows(made_scope, value, places)
        value_rows, attention_norm = _traced(made_scope, value_rows, source.input, size)
        rows = [] if down is None else [matrix(down).T]
        rows += [] if experts is None else [experts.down()]
        if down is not None and experts is not None:
            outputs = (recording.of(down).output, recording.of(experts.module).output)
            part_norms = _part_norms(scope, *outputs)
            rows = [
                each if norm is None else measured_norm(norm.module, size).fold(each)
                for each, norm in zip(rows, part_norms, strict=True)
            ]
        return Parts(
            first=self._inputs[number],
            output=output.module,
            value=value.module,
            value_columns=places,
            scalar=scalar,
            attention_write=writes[0],
            down=down,
            experts=experts,
            ffn_write=writes[1],
            also=None if also is None else Also(also.module, later * factors[2]),
            weights=_as_layer(
                made,
                attention_norm,
                ffn_norm,
                value_rows,
                writes[0].rows(matrix(output.module).T),
                up,
                gate,
                writes[1].rows(torch.cat(rows)),
                _names(down, experts),
            ),
        )

    def _around(self, recording: Recording, number: int) -> tuple[Tensor, Tensor]:
        following = [*self._inputs, self._final_norm][number + 1]
        return recording.of(self._inputs[number]).input, recording.of(following).input

    def _find_values(
        self, recording: Recording, number: int, output: Call, attention: list[Call]
    ) -> tuple[Call, list[int], int]:
        """Attention weights times values are the output projection's input: the columns of which this is true.

        In the layer's own attention, or in a layer before it, which is told.
        """
        wanted, pattern = output.input.unflatten(1, (self._heads, -1)), self._pattern(recording, number)
        for made in (number, *reversed(range(number))):
            calls = attention if made == number else _scope(recording, self._layers[made])
            for call in sorted(calls, key=lambda call: not is_linear(call.module)):
                if call.module is output.module or len(call.output) != len(wanted):
                    continue
                mixed = torch.einsum("hts,sj->thj", pattern, self._clipped(call.output.flatten(1)))
                distance = (wanted[:, :, :, None] - mixed[:, :, None]).abs().amax(0).flatten(0, 1)
                nearest = distance.min(1)
                if bool((nearest.values < CLOSE * wanted.abs().max()).all()):
                    return call, nearest.indices.tolist(), made
        raise AssertionError("no module gives the values")

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


def measured_norm(module: nn.Module, size: int) -> Norm:
    """A norm's weight, bias and epsilon, from what it makes of three vectors."""
    module = copy.deepcopy(module).double()
    vector = torch.linspace(-1, 2, size, dtype=torch.float64) ** 3 + 0.1
    with torch.no_grad():
        bias = module(torch.zeros(1, size, dtype=torch.float64))[0].double()
        large, shifted = (module(x[None])[0].double() for x in (1e4 * vector, 1e4 * vector + 1e4))
        centred = same(large, shifted)
        c = vector - vector.mean() * centred
        weight = (large - bias) * c.square().mean().sqrt() / c
        tiny = 1e-3 * vector
        scales = 1e-3 * weight * c / (module(tiny[None])[0].double() - bias)
    epsilon = scales.median().item() ** 2 - 1e-6 * c.square().mean().item()
    return Norm(weight, bias, max(epsilon, 0.0), centred)


def assert_same(a: Tensor, b: Tensor, what: str) -> None:
    """What was found must be what the model did."""
    error = ((a - b).abs().max() / b.abs().max()).item()
    assert error < 1e-5, f"{what}: off by {error:.1e}"


def _sink_module(layer: nn.Module) -> nn.Module | None:
    return next((module for module in layer.modules() if type(module).__name__ == "GraniteSWAAttention"), None)


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
    """The last module before the unembedding."""
    unembedding = recording.of(model.get_output_embeddings())
    return [call for call in recording.calls if same(call.output, unembedding.input)][-1].module


def _size(tensor: Tensor) -> int:
    return tensor.shape[-1]


def _find_experts(calls: list[Call]) -> RoutedExperts | None:
    found = [call.module for call in calls if is_experts(call.module)]
    return RoutedExperts(found[0]) if found else None


def _ffn(
    recording: Recording, down: nn.Module | None, experts: RoutedExperts | None, scope: list[Call]
) -> tuple[Tensor, Tensor]:
    """The coefficients [T, N] of every neuron, and what the whole network gives, before a norm, [T, d]."""
    if experts is None:
        assert down is not None
        return recording.of(down).input, recording.of(down).output
    call = recording.of(experts.module)
    routed = experts.coefficients(call)
    if down is None:
        return routed, experts.written(call)
    shared = recording.of(down)
    share = _share(scope, shared)
    parts = [(share * shared.input, share * shared.output), (routed, experts.written(call))]
    found = []
    for (coefficients, raw), norm in zip(parts, _part_norms(scope, shared.output, call.output), strict=True):
        scale = 1 if norm is None else measured_norm(norm.module, _size(raw)).scale(raw)
        found.append((coefficients / scale, raw if norm is None else norm.output))
    return torch.cat([found[0][0], found[1][0]], 1), found[0][1] + found[1][1]


def _part_norms(scope: list[Call], shared: Tensor, routed: Tensor) -> tuple[Call | None, Call | None]:
    """What the shared network and the experts pass through before they are added up."""
    return _norm_after(scope, shared), _norm_after(scope, routed)


def _fitted(after: Tensor, parts: list[Tensor], rest: list[Call]) -> tuple[list[float], Call | None]:
    """What the layer's input and its two writes are multiplied by to give the next one's input.

    With a third write where those do not, and a fourth factor.
    """
    third = [call for call in reversed(rest) if not is_linear(call.module) and call.output.shape == after.shape]
    for call in (None, *third):
        every = torch.stack([each.flatten() for each in (parts if call is None else [*parts, call.output])], 1)
        factors = torch.linalg.lstsq(every, after.flatten()[:, None]).solution
        if same(every @ factors, after.flatten()[:, None]):
            return [round(factor, 5) for factor in factors[:, 0].tolist()], call
    raise AssertionError("no writes give the next layer's input")


def _value_rows(scope: list[Call], value: Call, places: list[int]) -> tuple[Call, Tensor]:
    """The projection that values come from and its rows: itself, or what a norm of single vectors reads."""
    if is_linear(value.module):
        return value, matrix(value.module)[places]
    for call in scope:
        if is_linear(call.module) and same(call.output, value.input.flatten(1)):
            return call, matrix(call.module)[places]
    raise AssertionError("nothing gives what the values are made of")


def _share(scope: list[Call], shared: Call) -> Tensor:
    """What weighs the shared expert: a projection to one number, through a sigmoid; or nothing does. [T, 1]"""
    gates = [call for call in scope if is_linear(call.module) and _size(call.output) == 1]
    return torch.sigmoid(gates[-1].output) if gates else torch.ones(len(shared.output), 1, dtype=torch.float64)


def _norm_after(scope: list[Call], raw: Tensor) -> Call | None:
    found = [call for call in scope if not is_linear(call.module) and same(call.input, raw)]
    normed = [call for call in found if call.output.shape == raw.shape and not same(call.output, raw)]
    return normed[0] if normed else None


def _traced(scope: list[Call], rows: Tensor, read: Tensor, size: int) -> tuple[Tensor, Norm]:
    """Rows as they read the norm of the residual stream, and that norm: through what lies in between, if anything."""
    norms = [call for call in scope if not is_linear(call.module) and same(call.output, read)]
    norms = [call for call in norms if not same(call.input, call.output)]
    if not norms:
        return rows, Norm(torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64), None, False)
    norm = measured_norm(norms[-1].module, _size(read))
    if _size(read) == size:
        return rows, norm
    for call in scope:
        if is_linear(call.module) and same(call.output[:, : _size(read)], norms[-1].input):
            return _traced(scope, rows * norm.weight @ matrix(call.module)[: _size(read)], call.input, size)
    raise AssertionError("nothing gives what the values are made from")


def _find_keys(
    scope: list[Call], rest: list[Call], down: nn.Module | None, experts: RoutedExperts | None, size: int
) -> tuple[Tensor, Tensor | None, Norm]:
    """The rows of the up and the gate projection, and the norm they read."""
    ups, gates, read = [], [], None
    if down is not None:
        up, gate, read = _dense_keys(rest, down, experts)
        ups.append(up)
        gates.append(gate)
    if experts is not None:
        up, gate = experts.keys()
        ups.append(up)
        gates.append(gate)
        routed = next(call.input for call in rest if call.module is experts.module)
        read = routed if read is None else read
    assert read is not None
    _, norm = _traced(scope, ups[0], read, size)
    if experts is not None and len(ups) == 2 and routed.shape == read.shape:
        _, other = _traced(scope, ups[1], routed, size)  # experts may read a norm of their own
        ups[1], gates[1] = (rows * other.weight / norm.weight for rows in (ups[1], gates[1]))
    gated = all(gate is not None for gate in gates)
    return torch.cat(ups), torch.cat([gate for gate in gates if gate is not None]) if gated else None, norm


def _dense_keys(
    rest: list[Call], down: nn.Module, experts: RoutedExperts | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the activation takes is what the gate gives; what it lacks to the coefficients is what the up row gives."""
    inside = set() if experts is None else set(experts.module.modules())
    outputs = [call for call in rest if is_linear(call.module) and call.module is not down and _size(call.output) > 1]
    coefficients = next(call.input for call in rest if call.module is down)
    activated = [
        call
        for call in rest
        if not is_linear(call.module)
        and call.module not in inside
        and call.input.shape == call.output.shape == coefficients.shape
        and not same(call.input, call.output)
    ]
    call = activated[-1]
    source, rows = _rows_giving(outputs, call.input)
    if same(call.output, coefficients):
        return rows, None, source.input
    _, up = _rows_giving(outputs, coefficients / call.output)
    return up, rows, source.input


def _rows_giving(outputs: list[Call], wanted: Tensor) -> tuple[Call, Tensor]:
    for call in outputs:
        places = columns(wanted, call.output)
        if places:
            return call, matrix(call.module)[places]
    raise AssertionError("no module gives these numbers")


def _names(down: nn.Module | None, experts: RoutedExperts | None) -> tuple[int, ...]:
    dense = tuple(range(0 if down is None else len(matrix(down).T)))
    return dense if experts is None else (*dense, *experts.names())


def _as_layer(
    made: int,
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
        values_of=made,
    )
