"""One layer of a transformers model, read through its architecture's spec."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import torch
from neuron_attribution.requests import Subkey
from neuron_attribution.results import LayerParts, Mixer
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.feed_forward import (
    DenseFfn,
    Experts,
    LayerFfn,
    Routing,
    WeighedExperts,
)
from neuron_attribution_server.model.architectures.layers.layer_modules import (
    attends,
    attribute,
    factor_of,
    submodule,
    value_rows,
)
from neuron_attribution_server.model.architectures.layers.value_reading import Latent, ValueReading, clipped
from neuron_attribution_server.model.architectures.norms import NormView, WriteView, no_norm, norm_view
from neuron_attribution_server.model.architectures.parameters import required
from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    Projection,
    bias_of,
    select,
    shape_of,
    weight_of,
)
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, FeedForward, Rows
from neuron_attribution_server.model.attribution.exact_products import products_by_pieces
from neuron_attribution_server.model.attribution.host import Ids, on_device
from neuron_attribution_server.model.attribution.subvalues import Subvalues


class LayerView:
    """One layer's modules and the vectors of its neurons, in the model's own dtype: nothing is copied.

    Where the architecture has recurrent mixers, a layer may lack attention, the mixer or the FFN; never all of them.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ArchitectureSpec,
        config: Any,  # noqa: ANN401 - a family's own class
        sizes: tuple[HeadSizes, HeadSizes],
        nothing: Tensor,
        values_of: LayerView | None = None,
    ) -> None:
        """`sizes` are those of its heads, and what the heads of every layer fit in.

        `nothing` are the rows that neurons which are not there write, [0, d]. `values_of` is the layer whose values
        this one mixes, where it has none of its own.
        """
        self.module = module
        self.sizes, self.common = sizes
        self.values_of: LayerView = values_of or self
        self.remaining = 1.0
        """What layers multiply the residual stream by, from this one's input on: all that is recorded contains it."""
        self._spec = spec
        self._nothing = nothing
        self.recurrence_output = self._recurrence_output()
        """The output projection of what mixes positions without attention weights, where there is such a thing."""
        if self.recurrence_output is not None and spec.recurrence is not None:
            self._spec = spec = dataclasses.replace(spec, **spec.recurrence.changes)
        self.has_attention = spec.recurrence is None or attends(module, spec)
        self._multiplier = factor_of(spec.residual_multiplier, config, module)
        self._expert_multiplier = factor_of(spec.expert_multiplier, config, module)
        self._value_multiplier = factor_of(spec.value_multiplier, config, module)
        self._clip = attribute(config, spec.value_clip)
        self.ffn = self._read_ffn()
        if not self.has_attention and self.recurrence_output is None and not self.ffn.width:
            raise AttributeError(f"{type(module).__name__} has no attention, no recurrence and no feed-forward network")

    @cached_property
    def attention_output(self) -> nn.Module:
        """Attention's output projection, in layers that have attention."""
        return self.module.get_submodule(self._spec.attention_output)

    @cached_property
    def value(self) -> Rows:
        """Where the value projection's rows are, in layers that have attention."""
        found = value_rows(self.values_of.module, self._spec)
        assert found is not None
        return found

    @cached_property
    def value_module(self) -> nn.Module:
        """What computes the values, in layers that have attention."""
        return self.values_of.module.get_submodule(self.value.module)

    @cached_property
    def _value(self) -> Projection:
        return Projection(self.value_module, self.value.layout, self.sizes)

    @property
    def parts(self) -> LayerParts:
        """What the layer is made of."""
        mixers = (Mixer.ATTENTION,) if self.has_attention else ()
        if self.recurrence_output is not None and self._spec.recurrence is not None:
            mixers = (*mixers, self._spec.recurrence.mixer)
        dense, experts = self.ffn.dense, self.ffn.experts
        return LayerParts(
            mixers=mixers,
            heads=self.sizes.heads if self.has_attention else 0,
            ffn_width=0 if dense is None else dense.width,
            experts=0 if experts is None else experts.count,
        )

    @property
    def attention_width(self) -> int:
        """The places of attention neurons, heads * the largest head size, where there is attention."""
        return self.sizes.heads * self.common.head_size if self.has_attention else 0

    @property
    def recurrence(self) -> nn.Module | None:
        """The recurrent mixer: the module that its output projection is in."""
        if self.recurrence_output is None or self._spec.recurrence is None:
            return None
        return self._submodule(self._spec.recurrence.output.rpartition(".")[0])

    @property
    def kept_states(self) -> list[tuple[nn.Module, str]]:
        """The modules that keep states of the last pass, and the names of the attributes."""
        if self.recurrence_output is None or self._spec.recurrence is None:
            return []
        places = (path.rpartition(".") for path in self._spec.recurrence.kept)
        return [(self.module.get_submodule(module), name) for module, _, name in places]

    @property
    def recurrence_width(self) -> int:
        """What the recurrent mixer's output projection reads."""
        return 0 if self.recurrence_output is None else shape_of(self.recurrence_output)[1]

    @property
    def attention_weights_module(self) -> nn.Module | None:
        """The module that returns attention weights, where attention does not use transformers' interface."""
        return self._submodule(self._spec.attention_weights)

    @property
    def attention_write_modules(self) -> list[tuple[nn.Module, float]]:
        """The modules whose outputs, times a factor each, attention and what mixes beside it add to the residual."""
        found = []
        if self.has_attention:
            module = self._submodule(self._spec.attention_write) or self.attention_output
            found.append((module, self.attention_write.multiplier))
        if self.recurrence_output is not None and self._spec.recurrence is not None:
            factor = factor_of(self._spec.recurrence.multiplier, self.module)
            found.append((self.recurrence_output, self.remaining * self._multiplier * factor))
        return found

    @property
    def ffn_write_modules(self) -> list[nn.Module]:
        """The modules whose outputs' sum, times the multiplier, the FFN adds to the residual stream."""
        norm = self._submodule(self._spec.ffn_write)
        if norm is not None:
            found = [norm]
        elif self.ffn.experts is None:
            found = [] if self.ffn.dense is None else [self.ffn.dense.output]
        else:
            found = [module for path in self._spec.expert_outputs if (module := self._submodule(path)) is not None]
        also = self.also_written_module
        return found if also is None else [*found, also]

    @property
    def also_written_module(self) -> nn.Module | None:
        """The module whose output is written with the FFN's and is none of its neurons'."""
        return self._submodule(self._spec.ffn_also_writes)

    @property
    def stream_scalar(self) -> float:
        """What the residual stream is multiplied by at the layer's end."""
        return float(required(self.module, self._spec.stream_scalar)) if self._spec.stream_scalar else 1.0

    @cached_property
    def attention_write(self) -> WriteView:
        """What stands between attention's output projection and the residual stream."""
        norm = self._optional_norm(self._spec.attention_write) if self.has_attention else None
        factor = factor_of(self._spec.attention_multiplier, self.module)
        return WriteView(norm, self.remaining * self._multiplier * factor)

    @cached_property
    def ffn_write(self) -> WriteView:
        """What stands between the FFN's output projection and the residual stream."""
        norm = self._optional_norm(self._spec.ffn_write) if self.ffn.width else None
        return WriteView(norm, self.remaining * self._multiplier * factor_of(self._spec.ffn.multiplier, self.module))

    @cached_property
    def attention_subvalues(self) -> Subvalues:
        """Rows of W_O, heads * head size of them, which is the model's largest; none without attention."""
        if not self.has_attention:
            return Subvalues(lambda: [self._nothing], None)
        return Subvalues(
            lambda: [weight_of(self.attention_output).T],
            self.attention_write.frozen,
            self.common.missing(self.sizes.head_size),
        )

    @cached_property
    def ffn_subvalues(self) -> Subvalues:
        """Rows of W_down, in the order of the FFN's units; none without an FFN."""
        if not self.ffn.width:
            return Subvalues(lambda: [self._nothing], None)
        return self.ffn.subvalues(self.ffn_write.frozen)

    @property
    def attention_bias(self) -> Tensor | None:
        """The bias of attention's output projection, [d]."""
        return bias_of(self.attention_output)

    @cached_property
    def attention_norm(self) -> NormView:
        """The norm before attention, with the factor of what attention reads."""
        norm = self._optional_norm(self._spec.attention_norm) or no_norm()
        return norm.times(factor_of(self._spec.attention_input_multiplier, self.module))

    @cached_property
    def ffn_norm(self) -> NormView:
        """The norm before the FFN."""
        return self._optional_norm(self._spec.ffn_norm) or no_norm()

    @cached_property
    def experts_norm(self) -> NormView:
        """The norm before the routed experts."""
        return self._optional_norm(self._spec.experts_norm) or self.ffn_norm

    @property
    def part_writes(self) -> list[tuple[nn.Module, NormView]]:
        """The norms behind the shared network and the experts, where there are such."""
        found = [self._submodule(path) for path in self._spec.part_writes or ()]
        return [(module, norm_view(module, self._spec)) for module in found if module is not None]

    def ffn_reads(self, inputs: Tensor, attention_writes: Tensor) -> Tensor:
        """What the FFN reads, after its norm, from the layer's input and attention's write, [..., d]."""
        return self.ffn_norm.normed(self.ffn_base(inputs, attention_writes))

    def ffn_coefficients(self, inputs: Tensor, attention_writes: Tensor, routing: Routing | None) -> Tensor:
        """What multiplies W_down's rows, [P, N], from the layer's input and attention's write, [P, d]."""
        base = self.ffn_base(inputs, attention_writes)
        normed = self.ffn_norm.normed(base)
        routed = normed if self.experts_norm is self.ffn_norm else self.experts_norm.normed(base)
        return self.ffn.coefficients(normed, routed, routing)

    def ffn_base(self, inputs: Tensor, attention_writes: Tensor) -> Tensor:
        """What the norm before the FFN reads, [..., d]."""
        return self._own(inputs.float() if self._spec.parallel else inputs.float() + attention_writes.float())

    def attention_reads(self, inputs: Tensor) -> Tensor:
        """What attention reads, after its norm, from the layer's input, [..., d]."""
        return self.attention_norm.normed(self.attention_base(inputs))

    def attention_base(self, inputs: Tensor) -> Tensor:
        """What the norm before attention reads, [..., d]."""
        return self._own(inputs.float())

    @property
    def parallel(self) -> bool:
        """Whether the FFN reads the layer's input, as attention does."""
        return self._spec.parallel

    def _own(self, states: Tensor) -> Tensor:
        """The residual stream as it is in this layer."""
        return states if self.remaining == 1 else states / self.remaining

    def value_rows(self, head: int) -> Tensor:
        """Rows of W_V that a query head reads, [head size, d]."""
        size = self.sizes.head_size
        first = self.key_value_head(head) * size
        return self._through_latent(self._value_multiplier * self._value.weight[first : first + size].float())

    def attention_keys(self, units: Ids) -> Tensor:
        """What activates attention neurons: W_V rows of their key/value heads, through the norm's weight, [C, d]."""
        size = self.common.head_size
        numbers = units // size // self._group * self.sizes.head_size + units % size
        rows = self._through_latent(self._value_multiplier * self._value.rows(numbers))
        return rows * self.values_of.attention_norm.weight

    def value_vectors(self, normed: Tensor) -> Tensor:
        """The value vectors, [..., key/value heads * head size], from what attention reads, [..., d]."""
        return self.value_reading.vectors(normed)

    @property
    def value_reading(self) -> ValueReading:
        """How value vectors are made, by the layer that makes them, in layers that have attention."""
        latent = None
        if self._spec.value_latent is not None:
            projection, norm = (self.module.get_submodule(path) for path in self._spec.value_latent)
            latent = Latent.of(projection, norm_view(norm, self._spec))
        norm_of_values = self._optional_norm(self._spec.value_norm)
        return ValueReading(self._value, self.sizes, self._value_multiplier, self._clip, latent, norm_of_values)

    def projected_values(self, projected: Tensor) -> Tensor:
        """The value vectors [B, K, T, D] among what the value projection returned, [B, T, rows]."""
        values = select(projected.movedim(-1, 0), self.value.layout, self.sizes).movedim(0, -1)
        heads = values.unflatten(-1, (-1, self.sizes.head_size)).transpose(1, 2)
        return self._value_multiplier * clipped(heads, self._clip)

    @property
    def gate_module(self) -> nn.Module | None:
        """The projection whose activated output multiplies the mixed heads, where one does."""
        return None if self._spec.attention_gate is None else self._submodule(self._spec.attention_gate.rows.module)

    @property
    def mixed_norm_module(self) -> nn.Module | None:
        """The norm of the mixed heads, where there is one."""
        return self._submodule(self._spec.mixed_norm)

    def norm_gates(self, mixed: Tensor) -> Tensor:
        """What the norm of the mixed heads multiplies each of them by, its scale frozen, [E, H * D] as `mixed`."""
        norm = self._optional_norm(self._spec.mixed_norm)
        assert norm is not None
        return norm.weight / norm.scale(mixed)[:, None]

    def gates_of(self, projected: Tensor) -> Tensor:
        """What multiplies the mixed heads, [E, H * D] in float32, from what the gate's projection returned, [E, n]."""
        gate = self._spec.attention_gate
        assert gate is not None
        gates = gate.activation(select(projected.T.float(), gate.rows.layout, self.sizes).T)
        return gates.repeat_interleave(self.sizes.heads * self.sizes.head_size // gates.shape[1], 1)

    def key_value_head(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head // self._group

    @property
    def _group(self) -> int:
        """Query heads of a key/value head."""
        return self.sizes.heads // self.sizes.key_value_heads

    def ffn_keys(self, units: Ids, subkey: Subkey) -> Tensor:
        """What activates FFN neurons, through the weight of the norm before the FFN, [C, d]."""
        if subkey is Subkey.SUBVALUE:
            rows = self.ffn_subvalues.rows(on_device(units, self.ffn_norm.weight.device))
        else:
            rows = self.ffn.keys(units, subkey)
        if self.experts_norm is self.ffn_norm:
            return rows * self.ffn_norm.weight
        routed = on_device(self.ffn.is_routed(units), rows.device)[:, None]
        return rows * torch.where(routed, self.experts_norm.weight, self.ffn_norm.weight)

    def _through_latent(self, rows: Tensor) -> Tensor:
        """Rows that read a compressed state as rows that read what attention reads; its norm only scales them."""
        if self._spec.value_latent is None:
            return rows
        projection, norm = (self.module.get_submodule(path) for path in self._spec.value_latent)
        weight = norm_view(norm, self._spec).weight
        return products_by_pieces(rows * weight, weight_of(projection)[: len(weight)].T)

    def _recurrence_output(self) -> nn.Module | None:
        """The recurrent mixer's; in a layer that attends, not what attention itself goes out by."""
        spec = self._spec
        found = None if spec.recurrence is None else self._submodule(spec.recurrence.output)
        is_attention = attends(self.module, spec) and found is self._submodule(spec.attention_output)
        return None if is_attention else found

    def _read_ffn(self) -> LayerFfn:
        experts = self._submodule(self._spec.experts)
        if experts is None:
            is_missing = self._spec.recurrence is not None and self._submodule(self._spec.ffn.output) is None
            return LayerFfn(None if is_missing else self._dense(self._spec.ffn), None)
        shared = self._spec.shared_ffn
        has_shared = shared is not None and self._submodule(shared.output) is not None
        dense = self._dense(shared) if has_shared and shared is not None else None
        router, factor = self._submodule(self._spec.experts_router), self._expert_multiplier
        routed = Experts(experts, factor) if router is None else WeighedExperts(experts, router, factor)
        if routed.writes != self._nothing.shape[1]:
            raise AttributeError("its experts do not write to the residual stream, but to a smaller space")
        return LayerFfn(dense, routed, [norm.weight for _, norm in self.part_writes] or None)

    def _dense(self, paths: FeedForward) -> DenseFfn:
        return DenseFfn(self.module, paths, self.sizes, self._optional_norm(paths.norm))

    def _optional_norm(self, path: str | None) -> NormView | None:
        module = self._submodule(path)
        return None if module is None else norm_view(module, self._spec)

    def _submodule(self, path: str | None) -> nn.Module | None:
        """The module at a path, or None where this layer has none there."""
        return submodule(self.module, path)
