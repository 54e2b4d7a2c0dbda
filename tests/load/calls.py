"""Calls of each kind through the project's client, every one with a prompt or neurons of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from neuron_attribution import AsyncClient, AttributeRequest, FfnNeuron
from neuron_attribution.requests import AttributeOptions
from neuron_attribution.results import ModelSizes

from load.mix import Kind

Piece = TypeVar("Piece")
Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Material:
    """What requests are made of: the prose as the served model's tokens, its words, and the model's sizes."""

    tokens: tuple[int, ...]
    words: tuple[str, ...]
    sizes: ModelSizes


async def material(client: AsyncClient, prose: str) -> Material:
    """Ask the server for its model, and for the tokens of as much prose as it takes for certain."""
    info = await client.get_model()
    text = prose[: info.limits.tokens]
    tokens = (await client.tokenize(text, add_special_tokens=False)).tokens
    return Material(tuple(each.token.id for each in tokens), tuple(text.split()), info.sizes)


class Requests:
    """Makes calls. The generator decides what is in them, so that a seed gives the same ones again."""

    def __init__(
        self, client: AsyncClient, of: Material, generator: np.random.Generator, timeout: float | None = None
    ) -> None:
        """`timeout` is each call's, in seconds; None leaves it to the client."""
        self._client = client
        self._timeout = timeout
        self._of = of
        self._generator = generator

    def call(self, kind: Kind) -> Call:
        """One call, ready to be made; it gives what the client's method gives."""
        makers: dict[str, Callable[[Kind], Call]] = {
            "attribute": self._attribute,
            "stream": self._stream,
            "project": self._project,
            "tokenize": self._tokenize,
        }
        return makers[kind.call](kind)

    def _attribute(self, kind: Kind) -> Call:
        prompt = self._prompt(kind)

        async def call() -> object:
            return await self._client.attribute(prompt, timeout=self._timeout, **kind.arguments)

        return call

    def _stream(self, kind: Kind) -> Call:
        options = AttributeOptions(**kind.arguments)
        items = [AttributeRequest(prompt=self._prompt(kind), options=options) for _ in range(kind.items)]

        async def call() -> None:
            async for outcome in self._client.attribute_stream(items, timeout=self._timeout):
                if outcome.error is not None:
                    raise outcome.error

        return call

    def _project(self, kind: Kind) -> Call:
        layers = self._generator.integers(self._of.sizes.layers, size=kind.neurons).tolist()
        indices = self._generator.integers(self._of.sizes.ffn_width, size=kind.neurons).tolist()
        neurons = [FfnNeuron(layer=layer, index=index) for layer, index in zip(layers, indices, strict=True)]

        async def call() -> object:
            return await self._client.project_neuron(neurons, timeout=self._timeout, **kind.arguments)

        return call

    def _tokenize(self, kind: Kind) -> Call:
        text = " ".join(self._cut(self._of.words, self._length(kind)))

        async def call() -> object:
            return await self._client.tokenize(text, timeout=self._timeout, **kind.arguments)

        return call

    def _prompt(self, kind: Kind) -> tuple[int, ...]:
        """Two pieces of the prose, from random places."""
        length = self._length(kind)
        first = int(self._generator.integers(length + 1))
        return self._cut(self._of.tokens, first) + self._cut(self._of.tokens, length - first)

    def _length(self, kind: Kind) -> int:
        fewest, most = kind.tokens
        return int(self._generator.integers(fewest, most + 1))

    def _cut(self, whole: tuple[Piece, ...], length: int) -> tuple[Piece, ...]:
        start = int(self._generator.integers(len(whole)))
        return tuple(whole[(start + offset) % len(whole)] for offset in range(length))
