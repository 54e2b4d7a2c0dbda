"""What the load is put on: a service, and what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from neuron_attribution import AsyncClient
from neuron_attribution.results import ModelInfo

from load.arrivals import poisson
from load.calls import Requests, material
from load.mix import Mix
from load.offering import offer
from load.summary import Summary

WARM_UP_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """A service, reached by new clients that `connect` opens, and a mix of requests. `generator` decides all chance."""

    connect: Callable[[], AsyncClient]
    mix: Mix
    generator: np.random.Generator

    def warm_up(self) -> ModelInfo:
        """Make one call of each kind: the first of a kind may take long, and says nothing of the others.

        Tells what is served.
        """
        return asyncio.run(self._warm_up())

    def run(self, rate: float, seconds: float) -> Summary:
        """Callers come for so many seconds, `rate` a second; all of them are waited for."""
        return asyncio.run(self._run(rate, seconds))

    async def _run(self, rate: float, seconds: float) -> Summary:
        arrivals = poisson(rate, seconds, self.mix.kinds, self.generator)
        async with self.connect() as client:
            requests = Requests(client, await material(client, self.mix.prose), self.generator)
            return Summary(await offer(arrivals, lambda kind: requests.call(kind)()), seconds)

    async def _warm_up(self) -> ModelInfo:
        async with self.connect() as client:
            of = await material(client, self.mix.prose)
            requests = Requests(client, of, self.generator, timeout=WARM_UP_SECONDS)
            for kind in self.mix.kinds:
                await requests.call(kind)()
            return await client.get_model()
