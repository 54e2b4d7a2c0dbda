"""One layer of a transformers model, read through its architecture's spec."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from neuron_attribution.requests import Subkey
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.feed_forward import (
    DenseFfn,
    Experts,
    LayerFfn,
    Routing,
    WeighedExperts,
)
from neuron_attribution_server.model.architectures.norms import NormView, WriteView, no_norm, norm_view
from neuron_attribution_server.model.architectures.parameters import required
from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    Projection,
    bias_of,
    key_value_heads,
    select,
    weight_of,
)
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, Layout, Rows
from neuron_attribution_server.model.attribution.host import Ids, on_device
from neuron_attribution_server.model.attribution.subvalues import Subvalues


class LayerView:
    """One layer's modules and the vectors of its neurons, in the model's own dtype: nothing is copied."""

    def __init__(
        self,
        module: nn.Module,
        spec: ArchitectureSpec,
        config: Any,  # noqa: ANN401 - a family's own class
        values_of: LayerView | None = None,
    ) -> None:
        """`values_of` is the layer whose values this one mixes, where it has none of its own."""
        self.module = module
        self.attention_output = module.get_submodule(spec.attention_output)
        self.values_of: LayerView = values_of or self
        self.remaining = 1.0
        """What layers multiply the residual stream by, from this one's input on: all that is recorded contains it."""
        self._spec = spec
        self._multiplier = float(getattr(config, spec.residual_multiplier)) if spec.residual_multiplier else 1.0
        self._clip = _attribute(config, spec.value_clip)
        value = value_rows(module, spec) if values_of is None else values_of.value
        assert value is not None
        self.value: Rows = value
        """Where the value projection's rows are."""
        self.value_module = self.values_of.module.get_submodule(value.module)
        self.sizes = self.common = _head_sizes(self.attention_output, self.value_module, value.layout, config)
        self._value = Projection(self.value_module, value.layout, self.sizes)
        self.ffn = self._read_ffn()

    @property
    def attention_weights_module(self) -> nn.Module | None:
        """The module that returns attention weights, where attention does not use transformers' interface."""
        return self._submodule(self._spec.attention_weights)

    @property
    def attention_write_module(self) -> nn.Module:
        """The module whose output, times the multiplier, attention adds to the residual stream."""
        return self._submodule(self._spec.attention_write) or self.attention_output

    @property
    def ffn_write_modules(self) -> list[nn.Module]:
        """The modules whose outputs' sum, times the multiplier, the FFN adds to the residual stream."""
        norm = self._submodule(self._spec.ffn_write)
        if norm is not None:
            found = [norm]
        elif self.ffn.experts is None:
            assert self.ffn.dense is not None
            found = [self.ffn.dense.output]
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
        return WriteView(self._optional_norm(self._spec.attention_write), self.remaining * self._multiplier)

    @cached_property
    def ffn_write(self) -> WriteView:
        """What stands between the FFN's output projection and the residual stream."""
        return WriteView(self._optional_norm(self._spec.ffn_write), self.remaining * self._multiplier)

    @cached_property
    def attention_subvalues(self) -> Subvalues:
        """Rows of W_O, heads * head size of them, which is the model's largest."""
        return Subvalues(
            lambda: [weight_of(self.attention_output).T],
            self.attention_write.frozen,
            self.common.missing(self.sizes.head_size),
        )

    @cached_property
    def ffn_subvalues(self) -> Subvalues:
        """Rows of W_down, in the order of the FFN's units."""
        return self.ffn.subvalues(self.ffn_write.frozen)

    @property
    def attention_bias(self) -> Tensor | None:
        """The bias of attention's output projection, [d]."""
        return bias_of(self.attention_output)

    @cached_property
    def attention_norm(self) -> NormView:
        """The norm before attention."""
        return self._optional_norm(self._spec.attention_norm) or no_norm()

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
        return self.ffn_norm.normed(self._ffn_base(inputs, attention_writes))

    def ffn_coefficients(self, inputs: Tensor, attention_writes: Tensor, routing: Routing | None) -> Tensor:
        """What multiplies W_down's rows, [P, N], from the layer's input and attention's write, [P, d]."""
        base = self._ffn_base(inputs, attention_writes)
        normed = self.ffn_norm.normed(base)
        routed = normed if self.experts_norm is self.ffn_norm else self.experts_norm.normed(base)
        return self.ffn.coefficients(normed, routed, routing)

    def _ffn_base(self, inputs: Tensor, attention_writes: Tensor) -> Tensor:
        """What the norm before the FFN reads, [..., d]."""
        return self._own(inputs.float() if self._spec.parallel else inputs.float() + attention_writes.float())

    def attention_reads(self, inputs: Tensor) -> Tensor:
        """What attention reads, after its norm, from the layer's input, [..., d]."""
        return self.attention_norm.normed(self._own(inputs.float()))

    def _own(self, states: Tensor) -> Tensor:
        """The residual stream as it is in this layer."""
        return states if self.remaining == 1 else states / self.remaining

    def value_rows(self, head: int) -> Tensor:
        """Rows of W_V that a query head reads, [head size, d]."""
        size = self.sizes.head_size
        first = self.key_value_head(head) * size
        return self._through_latent(self._value.weight[first : first + size].float())

    def attention_keys(self, units: Ids) -> Tensor:
        """What activates attention neurons: W_V rows of their key/value heads, through the norm's weight, [C, d]."""
        size = self.common.head_size
        numbers = units // size // self._group * self.sizes.head_size + units % size
        return self._through_latent(self._value.rows(numbers)) * self.values_of.attention_norm.weight

    def value_vectors(self, normed: Tensor) -> Tensor:
        """The value vectors, [..., key/value heads * head size], from what attention reads, [..., d]."""
        if self._spec.value_latent is not None:
            projection, norm = (self.module.get_submodule(path) for path in self._spec.value_latent)
            latent = norm_view(norm, self._spec)
            compressed = normed @ weight_of(projection)[: len(latent.weight)].float().T
            bias = bias_of(projection)
            normed = latent.normed(compressed if bias is None else compressed + bias[: len(latent.weight)])
        values = self._clipped(self._value(normed))
        of_values = self._optional_norm(self._spec.value_norm)
        if of_values is None:
            return values
        return of_values.normed(values.unflatten(-1, (-1, self.sizes.head_size))).flatten(-2)

    def projected_values(self, projected: Tensor) -> Tensor:
        """The value vectors [B, K, T, D] among what the value projection returned, [B, T, rows]."""
        values = select(projected.movedim(-1, 0), self.value.layout, self.sizes).movedim(0, -1)
        return self._clipped(values.unflatten(-1, (-1, self.sizes.head_size)).transpose(1, 2))

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
        return rows * weight @ weight_of(projection)[: len(weight)].float()

    def _clipped(self, values: Tensor) -> Tensor:
        return values if self._clip is None else values.clamp(-self._clip, self._clip)

    def _read_ffn(self) -> LayerFfn:
        experts = self._submodule(self._spec.experts)
        if experts is None:
            return LayerFfn(DenseFfn(self.module, self._spec.ffn, self.sizes), None)
        shared = self._spec.shared_ffn
        has_shared = shared is not None and self._submodule(shared.output) is not None
        dense = DenseFfn(self.module, shared, self.sizes) if has_shared and shared is not None else None
        router = self._submodule(self._spec.experts_router)
        part_weights = [norm.weight for _, norm in self.part_writes] or None
        return LayerFfn(dense, Experts(experts) if router is None else WeighedExperts(experts, router), part_weights)

    def _optional_norm(self, path: str | None) -> NormView | None:
        module = self._submodule(path)
        return None if module is None else norm_view(module, self._spec)

    def _submodule(self, path: str | None) -> nn.Module | None:
        return submodule(self.module, path)


def submodule(layer: nn.Module, path: str | None) -> nn.Module | None:
    """The module at a path, or None where this layer has none there."""
    module: Any = layer
    for name in path.split(".") if path else []:
        module = getattr(module, name, None)
        if module is None:
            return None
    return module if path else None


def value_rows(layer: nn.Module, spec: ArchitectureSpec) -> Rows | None:
    """Where a layer's value projection is, or None where values may be shared and it has none."""
    has_own = submodule(layer, spec.value.module) is not None
    rows = spec.value if has_own or spec.value_else is None else spec.value_else
    return None if spec.value_sharing and submodule(layer, rows.module) is None else rows


def _head_sizes(output: nn.Module, value: nn.Module, layout: Layout, config: Any) -> HeadSizes:  # noqa: ANN401
    heads = config.num_attention_heads
    head_size = weight_of(output).shape[1] // heads
    return HeadSizes(heads, key_value_heads(weight_of(value).shape[0], layout, heads, head_size), head_size)


def _attribute(config: Any, path: str | None) -> Any:  # noqa: ANN401 - a number or nothing
    for name in path.split(".") if path else []:
        config = getattr(config, name, None)
    return config if path else None
