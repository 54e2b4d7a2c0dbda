"""A corpus explained on a Ray cluster: Ray Data streams batches of prompts through actors that hold the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self

# Before Ray is imported: it reports nothing about its use to anybody.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import ray.data
from neuron_attribution.analysis.corpus import CorpusItem
from neuron_attribution.analysis.rows import ItemRows
from neuron_attribution.errors import FailedPreconditionError, UnavailableError
from ray.exceptions import RayError

from neuron_attribution_server.corpus.actor import CorpusActor, packed, unpacked
from neuron_attribution_server.settings.config import LoadSettings

LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayBackend:
    """Explains prompts on a cluster. As a context manager it is connected to it."""

    address: str
    load: LoadSettings
    batch_prompts: int
    actors: int | None = None

    @property
    def version(self) -> str:
        """Ray's version."""
        return str(ray.__version__)

    def __enter__(self) -> Self:
        local: dict[str, Any] = {"include_dashboard": False} if self.address == LOCAL else {}
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UnavailableError(f"no Ray cluster at {self.address}: {error}", reason="NO_RAY_CLUSTER") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ray.shutdown()

    def explain(self, items: Iterator[CorpusItem]) -> Iterator[ItemRows]:
        """The rows of each prompt, as batches finish. Raises FailedPreconditionError where an actor fails.

        The prompts lie in the cluster's object store, their rows in this process: neither grows with the other.
        """
        batches: list[Any] = []
        while batch := list(islice(items, self.batch_prompts)):
            batches.append(ray.put(packed(batch)))
        if not batches:
            return
        found = ray.data.from_arrow_refs(batches).map_batches(
            CorpusActor,
            fn_constructor_args=(self.load,),
            batch_format="pyarrow",
            batch_size=self.batch_prompts,
            **self._resources(),
        )
        try:
            for rows in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from (each for each in unpacked(rows) if isinstance(each, ItemRows))
        except RayError as error:
            raise FailedPreconditionError(_cause(error), reason="ACTOR_FAILED") from error

    def _resources(self) -> dict[str, Any]:
        """What each actor takes. Without GPUs the actors share the CPUs."""
        cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = 0 if self.load.device == "cpu" else int(cluster.get("GPU", 0))
        actors = self.actors or max(1, gpus)
        compute = ray.data.ActorPoolStrategy(size=actors)
        if gpus:
            return {"compute": compute, "num_gpus": 1}
        return {"compute": compute, "num_cpus": self.load.threads or max(1, int(cluster.get("CPU", 1)) // actors)}


def ray_backend(
    address: str,
    *,
    actors: int | None,
    batch_prompts: int,
    threads: int | None,
    **load: Any,  # noqa: ANN401 - texts
) -> RayBackend:
    """The backend that the command line describes."""
    return RayBackend(
        address=address, load=LoadSettings(threads=threads, **load), batch_prompts=batch_prompts, actors=actors
    )


def _cause(error: BaseException) -> str:
    """What the actor itself failed with, in one line; Ray tells it at the end of a long story."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"an actor failed: {lines[-1] if lines else type(error).__name__}"
