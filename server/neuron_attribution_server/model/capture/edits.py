"""Interventions on activations: coefficients change while the model runs, its weights never do.

A neuron's coefficient is what its row of the down projection, or of attention's output projection, is multiplied by. It
is changed in the input of that projection, in the rows of one sequence, so that the others of a batch never see it. A
recurrent mixer is changed as a whole, in the input of its own output projection. No module takes the coefficients of
routed experts in: what the change adds to the experts' sum is added to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import Intervention, LayerPartKind, Operation, Scale, SetTo, Zero
from torch import Tensor, nn

from neuron_attribution_server.model.architectures.feed_forward import DenseFfn, Experts, Routing
from neuron_attribution_server.model.architectures.layer_view import LayerView
from neuron_attribution_server.model.architectures.model_view import ModelView

_Spans = frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Placed:
    """Interventions on one sequence, and the positions that those act on which ask for the explained ones only."""

    interventions: tuple[Intervention, ...] = ()
    explained: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One change of some units of a layer's part, in one sequence; `positions` None means all of them.

    `numbers` are ascending, and the units are counted from `first` on: parts of a change share their memory.
    """

    sequence: int
    numbers: Tensor
    operation: Operation
    positions: Tensor | None
    first: int = 0

    @property
    def units(self) -> Tensor:
        """The units that are changed."""
        return self.numbers - self.first

    def among(self, first: int, count: int) -> Edit | None:
        """The same change of `count` units from `first` on, counted from there; None where it changes none of them."""
        first += self.first
        ends = torch.tensor([first, first + count], device=self.numbers.device)
        start, end = torch.searchsorted(self.numbers, ends).tolist()
        return replace(self, numbers=self.numbers[start:end], first=first) if start < end else None

    def change(self, coefficients: Tensor, first: int, share: Tensor | None = None) -> None:
        """Change coefficients [P, units] of the positions from `first` on, in place.

        `share` [P, 1] is what multiplies them later on: a value that is set is reached with it.
        """
        self.change_rows(coefficients, self._rows(first, len(coefficients)), share)

    def change_rows(self, coefficients: Tensor, rows: Tensor, share: Tensor | None = None) -> None:
        """The same in some rows."""
        rows = rows.to(coefficients.device)  # where the layer runs, which is not where scoring happens in every model
        cells = (rows[:, None], self.units.to(coefficients.device))
        before = coefficients[cells]
        match self.operation:
            case Zero():
                coefficients[cells] = torch.zeros_like(before)
            case Scale(factor):
                coefficients[cells] = before * factor
            case SetTo(value):
                after = torch.full_like(before, value)
                coefficients[cells] = after if share is None else after / share.to(after)[rows]

    def acts_on(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """Which of some places [P] are changed, as their numbers."""
        mine = sequences == self.sequence
        if self.positions is not None:
            mine = mine & torch.isin(positions, self.positions)
        return mine.nonzero().squeeze(1)

    def _rows(self, first: int, count: int) -> Tensor:
        if self.positions is None:
            return torch.arange(count, device=self.numbers.device)
        return self.positions[(self.positions >= first) & (self.positions < first + count)] - first


class Edits:
    """The changes of one batch of sequences."""

    def __init__(self, view: ModelView, sequences: Sequence[Placed]) -> None:
        self._view = view
        self._count = len(sequences)
        self._edits: dict[tuple[int, LayerPartKind], list[Edit]] = defaultdict(list)
        self._numbers: dict[_Spans, Tensor] = {}
        self._paused = False
        self._clock = _Clock()
        for number, placed in enumerate(sequences):
            for intervention in placed.interventions:
                self._add(number, intervention, placed.explained)

    def __bool__(self) -> bool:
        return bool(self._edits)

    @contextmanager
    def made(self, lengths: Sequence[int] | None = None) -> Iterator[None]:
        """While the model runs on the sequences: padded to a common length behind their own `lengths`, or in steps."""
        self._clock = _Clock()
        handles: list[Any] = [self._before(self._view.layers[0].module, self._clock)]
        try:
            for (number, kind), edits in self._edits.items():
                handles += self._hooks(self._view.layers[number], kind, edits, lengths)
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the model runs on something else, in between."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def change_ffn(self, number: int, at: tuple[Any, Tensor], coefficients: Tensor) -> Tensor:
        """Coefficients [P, N] of every FFN neuron of a layer at some places, changed."""
        edits = self._edits.get((number, LayerPartKind.FFN), [])
        if not edits:
            return coefficients
        changed = coefficients.clone()
        sequences = torch.as_tensor(at[0], device=changed.device).expand(len(changed))
        for edit in edits:
            edit.change_rows(changed, edit.acts_on(sequences, at[1]))
        return changed

    def attention_factors(self, sequence: int, position: int) -> Tensor | None:
        """What the output of every head is multiplied by at one place, [L, H, D]; None where nothing is changed."""
        sizes = self._view.sizes
        place = torch.tensor([sequence], device=self._view.device), torch.tensor([position], device=self._view.device)
        factors = torch.ones(sizes.layers, sizes.heads * sizes.head_size, device=self._view.device)
        for (number, kind), every in self._edits.items():
            width = self._view.layers[number].attention_width
            for edit in _among(every, 0, width) if kind is LayerPartKind.ATTENTION else []:
                if edit.sequence == sequence:
                    edit.change_rows(factors[number : number + 1], edit.acts_on(*place))
        return None if bool((factors == 1).all()) else factors.unflatten(1, (sizes.heads, sizes.head_size))

    def _add(self, sequence: int, intervention: Intervention, explained: Sequence[int]) -> None:
        device = self._view.device
        only = intervention.explained_position_only
        positions = torch.tensor(explained, dtype=torch.long, device=device) if only else None
        for part, spans in _spans(self._view, intervention).items():
            numbers = self._numbers_in(frozenset(spans))
            self._edits[part].append(Edit(sequence, numbers, intervention.operation, positions))

    def _numbers_in(self, spans: _Spans) -> Tensor:
        """The numbers in some spans, ascending; the same tensor for the same spans, whole layers of them above all."""
        if spans not in self._numbers:
            every = torch.cat([torch.arange(*span) for span in spans])
            self._numbers[spans] = every.unique().to(self._view.device)
        return self._numbers[spans]

    def _hooks(
        self, layer: LayerView, kind: LayerPartKind, edits: list[Edit], lengths: Sequence[int] | None
    ) -> Iterator[Any]:
        if kind is LayerPartKind.ATTENTION:
            sizes, width = layer.sizes, layer.attention_width
            heads = [
                replace(each, numbers=layer.common.own_units(each.units, sizes.head_size), first=0)
                for each in _among(edits, 0, width)
            ]
            if heads:
                yield self._before(layer.attention_output, _InputHook(self._count, heads, self._clock))
            mixed = _among(edits, width, layer.recurrence_width)
            if layer.recurrence_output is not None and mixed:
                yield self._before(layer.recurrence_output, _InputHook(self._count, mixed, self._clock))
            return
        dense, experts = layer.ffn.dense, layer.ffn.experts
        inside = [] if dense is None else _among(edits, 0, dense.width)
        if dense is not None and inside:
            hook = _InputHook(self._count, inside, self._clock, dense)
            if dense.weight is not None:
                yield self._before(dense.reads, hook.see)
            yield self._before(dense.output, hook)
        first = 0 if dense is None else dense.width
        if experts is not None and _among(edits, first, experts.count * experts.width):
            routed = _among(edits, first, experts.count * experts.width)
            hook_after = _ExpertsHook(self._count, routed, experts, self._clock, lengths)
            yield experts.module.register_forward_hook(self._unless_paused(hook_after), with_kwargs=True)

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> Any:  # noqa: ANN401 - a handle
        return module.register_forward_pre_hook(self._unless_paused(hook), with_kwargs=True)

    def _unless_paused(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: None if self._paused else hook(*given)


class _Clock:
    """The positions of a sequence that have gone into the first layer; later ones may be told of its last ones only."""

    def __init__(self) -> None:
        self.end = 0

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """More go in."""
        self.end += first_input(args, kwargs).shape[1]


class _InputHook:
    """Changes the input of a projection: coefficients of each sequence and position, step by step."""

    def __init__(self, sequences: int, edits: Sequence[Edit], clock: _Clock, dense: DenseFfn | None = None) -> None:
        self._sequences, self._edits, self._clock, self._dense = sequences, edits, clock, dense
        self._read: Tensor | None = None

    def see(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the network reads."""
        read = first_input(args, kwargs)
        self._read = read.reshape(self._sequences, -1, read.shape[-1])

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = first_input(args, kwargs).clone(memory_format=torch.contiguous_format)
        grid = changed.view(self._sequences, -1, changed.shape[-1])
        for edit in self._edits:
            edit.change(grid[edit.sequence], self._clock.end - grid.shape[1], self._share(edit.sequence))
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    def _share(self, sequence: int) -> Tensor | None:
        if self._dense is None or self._read is None:
            return None
        return self._dense.share(self._read[sequence].float().to(self._edits[0].numbers.device))


class _ExpertsHook:
    """Adds to the sum of routed experts what changed coefficients change in it."""

    def __init__(
        self, sequences: int, edits: Sequence[Edit], experts: Experts, clock: _Clock, lengths: Sequence[int] | None
    ) -> None:
        self._sequences, self._experts, self._clock, self._lengths = sequences, experts, clock, lengths
        self._device = edits[0].numbers.device
        self._edits: dict[tuple[int, int], list[Edit]] = defaultdict(list)
        for edit in edits:
            for expert in (edit.units // experts.width).unique().tolist():
                self._edits[edit.sequence, expert] += _among([edit], expert * experts.width, experts.width)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        taken = self._experts.taken(args, kwargs, self._sequences)
        changed = output.clone(memory_format=torch.contiguous_format)
        for (sequence, expert), edits in self._edits.items():
            reads, routing = taken(expert)
            own = slice(0, reads.shape[1] if self._lengths is None else self._lengths[sequence])
            read = reads[sequence, own].to(self._device).float()
            sums = self._experts.written(changed, self._sequences, expert)
            first = self._clock.end - reads.shape[1]
            sums[sequence, own] += self._added(edits, expert, first, read, routing.at((sequence, own))).to(sums)
        return changed

    def _added(self, edits: Sequence[Edit], expert: int, first: int, reads: Tensor, routing: Routing) -> Tensor:
        routing = Routing(routing.indices.to(self._device), routing.weights.to(self._device))
        before = self._experts.expert_coefficients(reads, routing, expert)
        after = before.clone()
        for edit in edits:
            edit.change(after, first)
        units = torch.cat([edit.units for edit in edits]).unique()
        changed = (after - before)[:, units] / self._experts.multiplier
        return changed @ self._experts.block(expert)[units].float()


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a module reads: its hidden states are not always its first positional argument."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _spans(view: ModelView, intervention: Intervention) -> dict[tuple[int, LayerPartKind], set[tuple[int, int]]]:
    """The units that are changed in each part of a layer, as their first ones and what follows their last ones."""
    found: dict[tuple[int, LayerPartKind], set[tuple[int, int]]] = defaultdict(set)
    size = view.sizes.head_size
    for neuron in intervention.neurons:
        kind = LayerPartKind.FFN if isinstance(neuron, FfnNeuron) else LayerPartKind.ATTENTION
        unit = view.unit(neuron)
        found[neuron.layer, kind].add((unit, unit + 1))
    for head in intervention.heads:
        found[head.layer, LayerPartKind.ATTENTION].add((head.head * size, (head.head + 1) * size))
    for part in intervention.layers:
        layer, is_ffn = view.layers[part.layer], part.kind is LayerPartKind.FFN
        width = layer.ffn.width if is_ffn else layer.attention_width + layer.recurrence_width
        found[part.layer, part.kind].add((0, width))
    return found


def _among(edits: Sequence[Edit], first: int, count: int) -> list[Edit]:
    found = (edit.among(first, count) for edit in edits)
    return [edit for edit in found if edit is not None]
