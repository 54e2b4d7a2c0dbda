"""One layer of a transformers model, read through its architecture's spec."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from neuron_attribution.requests import Subkey
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.feed_forward import DenseFfn, Experts, LayerFfn
from neuron_attribution_server.model.architectures.norms import NormView, WriteView, no_norm, norm_view
from neuron_attribution_server.model.architectures.projections import (
    HeadSizes,
    Projection,
    bias_of,
    select,
    weight_of,
)
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, FeedForward
from neuron_attribution_server.model.attribution.host import Ids, on_device
from neuron_attribution_server.model.attribution.subvalues import Subvalues


class LayerView:
    """One layer's modules and the vectors of its neurons, in the model's own dtype: nothing is copied."""

    def __init__(self, module: nn.Module, spec: ArchitectureSpec, sizes: HeadSizes, config: Any) -> None:  # noqa: ANN401
        self.module = module
        self.attention_output = module.get_submodule(spec.attention_output)
        self.value_module = module.get_submodule(spec.value.module)
        self._spec = spec
        self._sizes = sizes
        self._multiplier = _factor(spec.residual_multiplier, config, module)
        self._expert_multiplier = _factor(spec.expert_multiplier, config, module)
        self._value_multiplier = _factor(spec.value_multiplier, config, module)
        self._clip = _attribute(config, spec.value_clip)
        self._value = Projection(self.value_module, spec.value.layout, sizes)
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
            return [norm]
        if self.ffn.experts is None:
            assert self.ffn.dense is not None
            return [self.ffn.dense.output]
        found = [self._submodule(path) for path in self._spec.expert_outputs]
        return [module for module in found if module is not None]

    @cached_property
    def attention_write(self) -> WriteView:
        """What stands between attention's output projection and the residual stream."""
        return WriteView(self._optional_norm(self._spec.attention_write), self._multiplier)

    @cached_property
    def ffn_write(self) -> WriteView:
        """What stands between the FFN's output projection and the residual stream."""
        return WriteView(self._optional_norm(self._spec.ffn_write), self._multiplier)

    @cached_property
    def attention_subvalues(self) -> Subvalues:
        """Rows of W_O, heads * head size of them."""
        return Subvalues(lambda: [weight_of(self.attention_output).T], self.attention_write.frozen)

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

    def ffn_reads(self, inputs: Tensor, attention_writes: Tensor) -> Tensor:
        """What the FFN reads, after its norm, from the layer's input and attention's write, [..., d]."""
        base = inputs.float() if self._spec.parallel else inputs.float() + attention_writes.float()
        return self.ffn_norm.normed(base)

    def value_rows(self, head: int) -> Tensor:
        """Rows of W_V that a query head reads, [head size, d]."""
        size = self._sizes.head_size
        first = self.key_value_head(head) * size
        return self._through_latent(self._value_multiplier * self._value.weight[first : first + size].float())

    def attention_keys(self, units: Ids) -> Tensor:
        """What activates attention neurons: W_V rows of their key/value heads, through the norm's weight, [C, d]."""
        size = self._sizes.head_size
        numbers = units // size // self._group * size + units % size
        rows = self._through_latent(self._value_multiplier * self._value.rows(numbers))
        return rows * self.attention_norm.weight

    def value_vectors(self, normed: Tensor) -> Tensor:
        """The value vectors, [..., key/value heads * head size], from what attention reads, [..., d]."""
        if self._spec.value_latent is not None:
            projection, norm = (self.module.get_submodule(path) for path in self._spec.value_latent)
            latent = norm_view(norm, self._spec)
            compressed = normed @ weight_of(projection)[: len(latent.weight)].float().T
            bias = bias_of(projection)
            normed = latent.normed(compressed if bias is None else compressed + bias[: len(latent.weight)])
        return self._value_multiplier * self._clipped(self._value(normed))

    def values_of(self, projected: Tensor) -> Tensor:
        """The value vectors [B, K, T, D] among what the value projection returned, [B, T, rows]."""
        values = select(projected.movedim(-1, 0), self._spec.value.layout, self._sizes).movedim(0, -1)
        heads = values.unflatten(-1, (-1, self._sizes.head_size)).transpose(1, 2)
        return self._value_multiplier * self._clipped(heads)

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
        gates = gate.activation(select(projected.T.float(), gate.rows.layout, self._sizes).T)
        return gates.repeat_interleave(self._sizes.heads * self._sizes.head_size // gates.shape[1], 1)

    def key_value_head(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head // self._group

    @property
    def _group(self) -> int:
        """Query heads of a key/value head."""
        return self._sizes.heads // self._sizes.key_value_heads

    def ffn_keys(self, units: Ids, subkey: Subkey) -> Tensor:
        """What activates FFN neurons, through the weight of the norm before the FFN, [C, d]."""
        if subkey is Subkey.SUBVALUE:
            rows = self.ffn_subvalues.rows(on_device(units, self.ffn_norm.weight.device))
        else:
            rows = self.ffn.keys(units, subkey)
        return rows * self.ffn_norm.weight

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
            return LayerFfn(self._dense(self._spec.ffn), None)
        shared = self._spec.shared_ffn
        has_shared = shared is not None and self._submodule(shared.output) is not None
        dense = self._dense(shared) if has_shared and shared is not None else None
        return LayerFfn(dense, Experts(experts, self._expert_multiplier))

    def _dense(self, paths: FeedForward) -> DenseFfn:
        return DenseFfn(self.module, paths, self._sizes, self._optional_norm(paths.norm))

    def _optional_norm(self, path: str | None) -> NormView | None:
        module = self._submodule(path)
        return None if module is None else norm_view(module, self._spec)

    def _submodule(self, path: str | None) -> nn.Module | None:
        """The module at a path, or None where this layer has none there."""
        module: Any = self.module
        for name in path.split(".") if path else []:
            module = getattr(module, name, None)
            if module is None:
                return None
        return module if path else None


def _attribute(holder: object, path: str | None) -> Any:  # noqa: ANN401 - a number or nothing
    for name in path.split(".") if path else []:
        holder = getattr(holder, name, None)
    return holder if path else None


def _factor(path: str | None, *holders: object) -> float:
    """The number at a path of the first holder that has one there; 1 where none has."""
    found = (_attribute(holder, path) for holder in holders)
    return float(next((number for number in found if number is not None), 1.0))
