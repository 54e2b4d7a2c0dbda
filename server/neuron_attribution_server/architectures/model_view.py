"""Reads a transformers model through its architecture's spec: the only code that touches modules and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from neuron_attribution.results import ModelSizes
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neuron_attribution_server.architectures.spec import ArchitectureSpec, NormKind, Rows


@dataclass(frozen=True, slots=True, eq=False)
class NormView:
    """A norm: weight [d], bias [d] or None, epsilon, and whether it subtracts the mean."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centred: bool

    def centre(self, vectors: Tensor) -> Tensor:
        """c(v) of vectors [..., d]."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def normed(self, vectors: Tensor) -> Tensor:
        """The norm of vectors [..., d], bias included."""
        scaled = self.weight * self.centre(vectors) / self.scale(vectors)[..., None]
        return scaled if self.bias is None else scaled + self.bias

    def scale(self, vectors: Tensor) -> Tensor:
        """The scale s [...] that the norm divides vectors [..., d] by."""
        return (self.centre(vectors).square().mean(-1) + self.epsilon).sqrt()


class LayerView:
    """One layer's modules and the vectors of its neurons, in the model's own dtype: nothing is copied."""

    def __init__(self, module: nn.Module, spec: ArchitectureSpec, sizes: ModelSizes) -> None:
        self.module = module
        self.attention_output = module.get_submodule(spec.attention_output)
        self.ffn_output = module.get_submodule(spec.ffn_output)
        self.activation = module.get_submodule(spec.activation)
        self.gated = spec.gate is not None
        self._spec = spec
        self._sizes = sizes

    @property
    def attention_subvalues(self) -> Tensor:
        """Rows of W_O, [heads * head size, d]."""
        return _weight(self.attention_output).T

    @property
    def attention_bias(self) -> Tensor | None:
        """The bias of attention's write, [d]."""
        return _bias(self.attention_output)

    @property
    def ffn_subvalues(self) -> Tensor:
        """Rows of W_down, [ffn width, d]."""
        return _weight(self.ffn_output).T

    @property
    def ffn_bias(self) -> Tensor | None:
        """The bias of the FFN's write, [d]."""
        return _bias(self.ffn_output)

    @property
    def value_rows(self) -> Tensor:
        """Rows of W_V, [key/value heads, head size, d]."""
        rows = self._rows(self._spec.value)
        return rows.reshape(self._sizes.key_value_heads, self._sizes.head_size, -1)

    @property
    def up_rows(self) -> Tensor:
        """Rows of the up projection, [ffn width, d]."""
        return self._rows(self._spec.up)

    @property
    def gate_rows(self) -> Tensor:
        """Rows of the gate projection, [ffn width, d]. Raises LookupError where the FFN has no gate."""
        return self._rows(self._gate())

    def ffn_inputs(self, normed: Tensor) -> Tensor:
        """The FFN's coefficients, [..., ffn width], from what it reads, [..., d], by its rows and biases."""
        up = self._project(self._spec.up, normed)
        if not self.gated:
            activated: Tensor = self.activation(up)
            return activated
        gated: Tensor = self.activation(self._project(self._gate(), normed)) * up
        return gated

    def value_vectors(self, normed: Tensor) -> Tensor:
        """The value vectors, [..., key/value heads * head size], from what attention reads, [..., d]."""
        return self._project(self._spec.value, normed)

    @property
    def attention_norm(self) -> NormView:
        """The norm before attention."""
        return norm_view(self.module.get_submodule(self._spec.attention_norm), self._spec.norm)

    @property
    def ffn_norm(self) -> NormView:
        """The norm before the FFN."""
        return norm_view(self.module.get_submodule(self._spec.ffn_norm), self._spec.norm)

    def head_subvalues(self, head: int) -> Tensor:
        """Rows of W_O of one head, [head size, d]."""
        size = self._sizes.head_size
        return self.attention_subvalues[head * size : (head + 1) * size]

    def key_value_head(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head // (self._sizes.heads // self._sizes.key_value_heads)

    def _rows(self, rows: Rows) -> Tensor:
        return _weight(self.module.get_submodule(rows.module)).chunk(rows.blocks)[rows.block]

    def _gate(self) -> Rows:
        if self._spec.gate is None:
            raise LookupError(f"the FFN of {self._spec.family} models has no gate")
        return self._spec.gate

    def _project(self, rows: Rows, normed: Tensor) -> Tensor:
        projected = normed @ self._rows(rows).float().T
        bias = _bias(self.module.get_submodule(rows.module))
        return projected if bias is None else projected + bias.chunk(rows.blocks)[rows.block]


class ModelView:
    """A model's layers, final norm and unembedding, with its sizes."""

    def __init__(self, model: PreTrainedModel, spec: ArchitectureSpec) -> None:
        self.model = model
        self.spec = spec
        self.sizes = _sizes(model, spec)
        self.layers = [LayerView(layer, spec, self.sizes) for layer in _layer_modules(model, spec)]
        self.final_norm_module = model.get_submodule(spec.final_norm)
        self.final_norm = norm_view(self.final_norm_module, spec.norm)
        unembedding = model.get_output_embeddings()
        self.unembedding: Tensor = _weight(unembedding).float().contiguous()
        """W_U in float32, [vocabulary, d]."""
        self.unembedding_bias = _bias(unembedding)

    @property
    def device(self) -> torch.device:
        """Where scoring happens: the unembedding's device."""
        return self.unembedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights and activations."""
        return self.model.dtype


def norm_view(module: nn.Module, kind: NormKind) -> NormView:
    """Read a norm module's weight, bias and epsilon, by whichever of its usual names each goes."""
    epsilon = next(getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name))
    return NormView(_float(module.weight), _bias(module), float(epsilon), kind is NormKind.LAYER)


def _layer_modules(model: PreTrainedModel, spec: ArchitectureSpec) -> list[nn.Module]:
    return list(model.get_submodule(spec.layers).children())


def _sizes(model: PreTrainedModel, spec: ArchitectureSpec) -> ModelSizes:
    config = model.config.get_text_config()
    layers = _layer_modules(model, spec)
    heads = config.num_attention_heads
    width = _weight(layers[0].get_submodule(spec.attention_output)).shape[1]
    value_rows = _weight(layers[0].get_submodule(spec.value.module)).shape[0] // spec.value.blocks
    head_size = width // heads
    vocabulary, hidden_size = _weight(model.get_output_embeddings()).shape
    return ModelSizes(
        layers=len(layers),
        heads=heads,
        key_value_heads=value_rows // head_size,
        head_size=head_size,
        ffn_width=_weight(layers[0].get_submodule(spec.ffn_output)).shape[1],
        hidden_size=hidden_size,
        vocabulary=vocabulary,
    )


def _weight(module: nn.Module) -> Tensor:
    """A projection's weight as [output, input]; transformers' Conv1D stores the transpose."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else _float(bias)


def _float(tensor: Tensor | nn.Module) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor.detach().float()
