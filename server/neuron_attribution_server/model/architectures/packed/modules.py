"""Modules whose weights stay packed: a matrix is unpacked when it is read, and is not kept but until the next one is.

They compute exactly what modules with the unpacked matrices compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from neuron_attribution_server.model.architectures.packed.packings import Form, Packing, Parts, matrix_bytes
from neuron_attribution_server.model.architectures.parameters import required
from neuron_attribution_server.model.attribution.host import is_host


class Memo:
    """The matrix of a model that scoring has read last: it reads a layer's several times. Never two at a time.

    On the host they are unpacked into one room, which is kept: it is neither torn from the heap nor mapped and cleared
    for each of them anew.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._matrix: Tensor | None = None
        self._room: mmap | None = None
        self._last: StorageWeakRef | None = None

    def room(self, form: Form, device: torch.device) -> Tensor:
        """An empty matrix: in the room, unless somebody still holds what was there before."""
        if not is_host(device):
            return torch.empty(form.shape, dtype=form.dtype, device=device)
        size = math.prod(form.shape) * form.dtype.itemsize
        if self._room is None or len(self._room) < size or (self._last is not None and not self._last.expired()):
            self._room = self._last = None
            self._room = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        found = torch.frombuffer(self._room, dtype=form.dtype, count=math.prod(form.shape)).view(form.shape)
        self._last = StorageWeakRef(found.untyped_storage())
        return found

    def forget(self) -> None:
        """Make room for another matrix."""
        self._key = self._matrix = None

    def read(self, key: object, unpack: Callable[[], Tensor]) -> Tensor:
        """The matrix with this key."""
        if self._matrix is None or self._key != key:
            self.forget()
            self._matrix = unpack()
            self._key = key
        return self._matrix


class PackedLinear(nn.Module):
    """A linear projection with a packed weight."""

    def __init__(
        self, packing: Packing, form: Form, parts: Mapping[str, nn.Parameter], bias: nn.Parameter | None, memo: Memo
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            self.register_parameter(name, part)
        self.bias = bias
        self.form = form
        self.out_features, self.in_features = form.shape
        self._packing = packing
        self._names = tuple(parts)
        self._memo = memo

    def forward(self, inputs: Tensor) -> Tensor:
        """The product with the whole matrix, as `nn.Linear` has it."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            product: Tensor = _ProductUnpackedAgain.apply(inputs, self)  # type: ignore[no-untyped-call]
            return product
        return self.product(inputs)

    def product(self, inputs: Tensor) -> Tensor:
        """The same without a gradient."""
        rows = inputs.flatten(0, -2)  # or oneDNN copies the whole matrix where there is one token
        found: Tensor = nn.functional.linear(rows, self.unpacked(), self.bias).unflatten(0, inputs.shape[:-1])
        return found

    def unpacked(self) -> Tensor:
        """The weight, [outputs, inputs], where the module runs; it is not kept."""
        self._memo.forget()
        return self._unpacked({name: getattr(self, name) for name in self._names})

    def matrix(self) -> Tensor:
        """The weight, [outputs, inputs], where scoring reads it."""
        return self._memo.read(self, lambda: self._unpacked(self._read()))

    def plain(self) -> nn.Linear:
        """The same projection with its matrix unpacked for good."""
        found = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        empty = torch.empty(self.form.shape, dtype=self.form.dtype)
        found.weight = nn.Parameter(self._packing.unpack(self._read(), self.form, empty), requires_grad=False)
        found.register_parameter("bias", self.bias)
        return found

    def _unpacked(self, parts: Parts) -> Tensor:
        return self._packing.unpack(parts, self.form, self._memo.room(self.form, parts[self._packing.numbers].device))

    def _read(self) -> Parts:
        return {name: required(self, name) for name in self._names}


class _ProductUnpackedAgain(torch.autograd.Function):
    """A product whose matrix is unpacked again for the gradient: no other one is kept meanwhile."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: PackedLinear) -> Tensor:  # noqa: ANN401 - PyTorch's own
        ctx.module = module
        return module.product(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - PyTorch's own
        return gradients[0] @ ctx.module.unpacked(), None


class PackedExperts:
    """The matrices of a layer's experts, unpacked one at a time: what a module has in place of a 3-D parameter.

    The parts are parameters of that module, named after the parameter; `shape` is that of the parameter, which may have
    the transposes of what is packed.
    """

    def __init__(
        self, packing: Packing, form: Form, module: nn.Module, name: str, memo: Memo, *, transposed: bool
    ) -> None:
        self.form = form
        self._transposed = transposed
        self._packing = packing
        self._module = module
        self._name = name
        self._names = {part: f"{name}_{part}" for part in packing.parts}
        self._memo = memo
        self._count = len(getattr(module, self._names[packing.marker]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, and the sides of the matrix of one."""
        rows, columns = reversed(self.form.shape) if self._transposed else self.form.shape
        return self._count, rows, columns

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, expert: Any) -> Tensor:  # noqa: ANN401 - a number, or a tensor that holds one
        """The matrix of one expert where the module runs."""
        self._memo.forget()
        parts = {part: getattr(self._module, name)[expert] for part, name in self._names.items()}
        return self._turned(self._unpacked(parts))

    def matrix(self, expert: int) -> Tensor:
        """The matrix of one expert where scoring reads it."""
        return self._turned(self._memo.read((self, expert), lambda: self._unpacked(self._read(expert))))

    def put_plain(self) -> None:
        """Put the 3-D parameter with all matrices, unpacked for good, where the packed ones are."""
        held = nn.Parameter(torch.empty(self.shape, dtype=self.form.dtype), requires_grad=False)
        for expert in range(self._count):
            held[expert] = self.matrix(expert)
        self._memo.forget()
        for part in self._names.values():
            delattr(self._module, part)
        delattr(self._module, self._name)
        self._module.register_parameter(self._name, held)

    def _turned(self, matrix: Tensor) -> Tensor:
        return matrix.T if self._transposed else matrix

    def _unpacked(self, parts: Parts) -> Tensor:
        return self._packing.unpack(parts, self.form, self._memo.room(self.form, parts[self._packing.numbers].device))

    def _read(self, expert: int) -> Parts:
        return {part: required(self._module, name)[expert] for part, name in self._names.items()}


def unpack(model: nn.Module) -> None:
    """Put plain matrices wherever a model that is on the host has packed ones."""
    for name, module in list(model.named_modules()):
        for packed in _packed_of(module):
            if isinstance(packed, PackedLinear):
                model.set_submodule(name, packed.plain())
            else:
                packed.put_plain()


def unpacked_bytes(model: nn.Module, device: torch.device) -> int:
    """What the largest matrix takes while it is unpacked on a device and read; none where nothing is packed."""
    forms = [each.form for module in model.modules() for each in _packed_of(module)]
    return max((matrix_bytes(form, device) for form in forms), default=0)


def unembedding_bytes(model: Any) -> int:  # noqa: ANN401 - a model of transformers
    """What an unembedding takes that is packed: scoring keeps it unpacked, beside its packed numbers."""
    module = model.get_output_embeddings()
    if not isinstance(module, PackedLinear):
        return 0
    return module.out_features * module.in_features * module.form.dtype.itemsize


def has_packed_experts(module: nn.Module) -> bool:
    """Whether a module's experts are packed."""
    return any(isinstance(held, PackedExperts) for held in module.__dict__.values())


def tensor_bytes(model: nn.Module) -> int:
    """What a model's parameters and buffers take."""
    return sum(each.numel() * each.itemsize for each in {*model.parameters(), *model.buffers()})


def _packed_of(module: nn.Module) -> list[PackedLinear | PackedExperts]:
    if isinstance(module, PackedLinear):
        return [module]
    return [held for held in module.__dict__.values() if isinstance(held, PackedExperts)]
