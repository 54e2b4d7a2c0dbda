"""Random requests of every kind, sizes spread over orders of magnitude: small ones mostly, and some near the limits."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head, Neuron
from neuron_attribution.requests import (
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    Part,
    ProjectNeuronRequest,
    Scale,
    ScoringMethod,
    SetTo,
    Side,
    Zero,
)
from neuron_attribution.results import ModelInfo
from neuron_attribution.traces import TraceOptions, TraceRequest

Request = AttributeRequest | InterveneRequest | ProjectNeuronRequest | TraceRequest


class RandomRequests:
    """Requests for one model, the same for the same seed. They may be over the server's limits."""

    def __init__(self, model: ModelInfo, seed: int, longest: int = 512) -> None:
        self._sizes = model.sizes
        self._random = random.Random(seed)
        self._longest = longest
        self._kinds: tuple[Callable[[], Request], ...] = (
            *(self.attribution, self.intervention, self.projection, self.trace),
        )

    def any(self) -> Request:
        """A request of any kind."""
        return self._random.choices(self._kinds, (6, 2, 1, 1))[0]()

    def attribution(self) -> AttributeRequest:
        """An attribution of a few tokens or many, by any method, of any parts."""
        usual = ScoringMethod.LOG_PROBABILITY_INCREASE
        method = self._rarely(0.3, usual, lambda: self._random.choice([*ScoringMethod]))
        explained = self._random.random()
        prompt = self._ids(self._count(1, self._longest))
        generate = self._count(1, 16) if 0.25 <= explained < 0.4 else None
        return AttributeRequest(
            prompt=prompt,
            completion=self._ids(self._count(1, 32)) if explained < 0.25 else None,
            generate=generate,
            sampling=Sampling(top_p=0.9, seed=generate) if explained < 0.32 and generate else None,
            contrast=self._id() if method is usual and self._random.random() < 0.15 else None,
            options=self._options(method, len(prompt)),
        )

    def intervention(self) -> InterveneRequest:
        """A few sets of interventions or many; some go on writing."""
        return InterveneRequest(
            prompt=self._ids(self._count(1, self._longest)),
            sets=tuple((self._intervention(),) for _ in range(self._count(1, 32))),
            generate=self._rarely(0.3, 0, lambda: self._count(1, 16)),
        )

    def projection(self) -> ProjectNeuronRequest:
        """A few neurons or many; some are read through a head."""
        side = self._random.choice([*Side])
        through = None
        neurons = self._neurons(self._count(1, 1000))
        if side is Side.SUBVALUE and self._random.random() < 0.2:
            through = self._head()
            neurons = tuple(each for each in neurons if isinstance(each, FfnNeuron)) or (FfnNeuron(0, 0),)
        return ProjectNeuronRequest(neurons=neurons, side=side, through=through, top_k=self._count(1, 1000))

    def trace(self) -> TraceRequest:
        """A graph of a few nodes or many; of some nothing is measured."""
        nodes = self._count(1, 500)
        measure = self._random.random() < 0.8
        return TraceRequest(
            prompt=self._ids(self._count(1, self._longest)),
            completion=self._rarely(0.2, None, lambda: self._ids(self._count(1, 16))),
            contrast=self._rarely(0.2, None, self._id),
            options=TraceOptions(
                nodes=nodes,
                measure=measure,
                heads=self._random.random() < 0.3,
                screened=self._rarely(0.3, None, lambda: self._count(nodes, 4096)) if measure else None,
                projection_top_k=self._rarely(0.4, 10, lambda: self._count(1, 100)),
            ),
        )

    def _options(self, method: ScoringMethod, tokens: int) -> AttributeOptions:
        return AttributeOptions(
            parts=self._rarely(0.5, frozenset(Part), self._parts),
            top_k=self._rarely(0.4, 10, lambda: self._count(1, 1000)),
            direction=self._rarely(0.4, Direction.INCREASE, lambda: self._random.choice([*Direction])),
            scoring_method=method,
            projection_top_k=self._rarely(0.4, 10, lambda: self._count(1, 100)),
            query_sources=self._rarely(0.3, 30, lambda: self._count(1, 1000)),
            neurons=self._rarely(0.2, (), lambda: self._neurons(self._count(1, 100))),
            exhaustive=tokens < 8 and self._random.random() < 0.2,
            head_top_k=self._rarely(0.3, 10, lambda: self._count(1, 1000)),
            position_projection_top_k=self._rarely(0.15, 0, lambda: self._count(1, 20)),
            attention_neurons_over_positions=self._random.random() < 0.1,
            include_final_norm_bias=self._random.random() < 0.1,
            interventions=self._rarely(0.1, (), lambda: (Intervention(Scale(0.5), heads=(self._head(),)),)),
        )

    def _rarely(self, chance: float, usual, otherwise):
        return otherwise() if self._random.random() < chance else usual

    def _count(self, least: int, most: int) -> int:
        """Spread evenly over orders of magnitude."""
        return round(math.exp(self._random.uniform(math.log(least), math.log(most))))

    def _parts(self) -> frozenset[Part]:
        return frozenset(self._random.sample([*Part], self._random.randint(1, len(Part) - 1)))

    def _id(self) -> int:
        return self._random.randrange(self._sizes.vocabulary)

    def _ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._id() for _ in range(count))

    def _head(self) -> Head:
        return Head(self._random.randrange(self._sizes.layers), self._random.randrange(self._sizes.heads))

    def _neurons(self, count: int) -> tuple[Neuron, ...]:
        return tuple(self._neuron() for _ in range(count))

    def _neuron(self) -> Neuron:
        layer = self._random.randrange(self._sizes.layers)
        if self._random.random() < 0.5:
            return FfnNeuron(layer, self._random.randrange(self._sizes.ffn_width))
        return AttentionNeuron(
            layer, self._random.randrange(self._sizes.heads), self._random.randrange(self._sizes.head_size)
        )

    def _intervention(self) -> Intervention:
        operation = self._random.choice([Zero(), Scale(0.5), SetTo(1.0)])
        heads = tuple(self._head() for _ in range(self._random.randint(0, 3)))
        return Intervention(operation, neurons=self._neurons(self._count(1, 30)), heads=heads)
