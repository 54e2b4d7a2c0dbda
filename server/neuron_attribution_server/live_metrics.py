"""Metrics that are read where they are kept, when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neuron_attribution_server.front_end.observability.metrics import PREFIX
from neuron_attribution_server.front_end.scheduling.request_queue import RequestQueue
from neuron_attribution_server.front_end.service.result_cache import ResultCache
from neuron_attribution_server.front_end.transfer.exchange import Terms
from neuron_attribution_server.front_end.workers.interface import DeviceState, Worker
from neuron_attribution_server.settings.config import ServerConfig
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.reports import GpuMemory

_GAUGES = {
    "ready": "1 while health says SERVING.",
    "draining": "1 after a stop signal, while accepted calls are finished.",
    "queue_capacity_requests": "Requests that may wait.",
    "queue_capacity_tokens": "Tokens that may wait.",
    "certificate_expiry_timestamp_seconds": "When the TLS certificate in use expires, in seconds since 1970.",
    "queue_requests": "Requests that wait now.",
    "queue_tokens": "Tokens of the requests that wait now.",
    "queue_seconds": "Worker time that the requests that wait now are predicted to take, one by one.",
    "queue_capacity_seconds": "Worker time that may wait.",
    "unread_bytes": "Bytes of answers that are computed or not yet read by their callers, copies included.",
    "unread_capacity_bytes": "Bytes of such answers that may be held.",
    "held_request_bytes": "Bytes of requests that come in or are not yet answered.",
    "held_request_capacity_bytes": "Bytes of such requests that may be held.",
    "cache_bytes": "Bytes of the answers that are kept to be given again.",
    "cache_capacity_bytes": "Bytes of answers that may be kept.",
}
_COUNTERS = {
    "cache_hits_total": "Requests answered from the cache.",
    "cache_misses_total": "Requests that the cache had no answer to.",
}
_FAILING = ("reload_failing", "1 while files were changed and cannot be read, so that what they held before is in use.")
_MODEL = ("model", "The served model; always 1.")
_UP = ("worker_up", "1 while the worker of a device is loaded and alive, 0 until it is back.")
_RESTARTS = ("worker_restarts_total", "Restarts of the worker of a device.")
_RESIDENT = ("worker_resident_memory_bytes", "Resident memory of the worker process of a device.")
_PREPARED = (
    "ranges_ready_ratio",
    "The part that is ready of the vocabulary ranges of a device's worker, which bound decreases.",
)
_GPU = ("gpu_memory_bytes", "GPU memory after the last batch: in tensors, held by PyTorch, and in all.")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What there is to read once the model is loaded."""

    facts: ModelFacts
    queue: RequestQueue
    cache: ResultCache


class LiveMetrics(Collector):
    """Reads the state of one server. It is called by a thread that serves metrics, and only reads."""

    def __init__(
        self,
        config: ServerConfig,
        worker: Worker,
        gpu_memory: dict[str, GpuMemory],
        certificate_expiry: Callable[[], float] | None,
        failing: Mapping[str, Callable[[], bool]],
        terms: Terms | None = None,
    ) -> None:
        self._config = config
        self._worker = worker
        self._gpu_memory = gpu_memory
        self._certificate_expiry = certificate_expiry
        self._failing = failing
        self._terms = terms
        self.loaded: Loaded | None = None
        self.serving = False
        self.draining = False

    def describe(self) -> Iterable[Metric]:
        """Every family, empty."""
        yield from (GaugeMetricFamily(PREFIX + name, text) for name, text in _GAUGES.items())
        yield from (CounterMetricFamily(PREFIX + name, text) for name, text in _COUNTERS.items())
        yield _failing_family()
        yield _info()
        yield from _worker_families()

    def collect(self) -> Iterable[Metric]:
        """Every family that can be known now."""
        for name, value in self._gauges():
            yield GaugeMetricFamily(PREFIX + name, _GAUGES[name], value)
        for name, count in self._counters():
            yield CounterMetricFamily(PREFIX + name, _COUNTERS[name], count)
        yield from self._reloads()
        if self.loaded is not None:
            yield _info(self.loaded.facts)
        yield from self._workers()

    def _gauges(self) -> Iterator[tuple[str, float]]:
        yield "ready", self.serving and not self.draining
        yield "draining", self.draining
        yield "queue_capacity_requests", self._config.queued_requests
        yield "queue_capacity_tokens", self._config.queued_tokens
        yield "queue_capacity_seconds", self._config.queued_seconds
        if self._certificate_expiry is not None:
            yield "certificate_expiry_timestamp_seconds", self._certificate_expiry()
        if self._terms is not None:
            for name, budget in (("unread", self._terms.answers), ("held_request", self._terms.requests)):
                yield f"{name}_bytes", budget.held
                yield f"{name}_capacity_bytes", budget.capacity
        yield "cache_capacity_bytes", self._config.cache_bytes
        loaded = self.loaded
        yield "queue_requests", len(loaded.queue) if loaded else 0
        yield "queue_tokens", loaded.queue.tokens if loaded else 0
        yield "queue_seconds", loaded.queue.seconds if loaded else 0
        yield "cache_bytes", loaded.cache.bytes if loaded else 0

    def _counters(self) -> Iterator[tuple[str, float]]:
        loaded = self.loaded
        yield "cache_hits_total", loaded.cache.hits if loaded else 0
        yield "cache_misses_total", loaded.cache.misses if loaded else 0

    def _reloads(self) -> Iterator[Metric]:
        family = _failing_family()
        for files, failing in self._failing.items():
            family.add_metric([files], failing())
        if family.samples:
            yield family

    def _workers(self) -> Iterator[Metric]:
        up, restarts, resident, prepared, gpu = _worker_families()
        for device, states in _by_device(self._worker.devices()).items():
            up.add_metric([device], all(state.is_live for state in states))
            restarts.add_metric([device], sum(state.restarts for state in states))
            prepared.add_metric([device], min(state.prepared for state in states))
            live = [state for state in states if state.is_live]
            if live and live[0].pid is not None:
                resident.add_metric([device], sum(_resident_bytes(state.pid) for state in live))
            held = self._gpu_memory.get(device) if live else None
            if held is not None:
                gpu.add_metric([device, "allocated"], held.allocated)
                gpu.add_metric([device, "reserved"], held.reserved)
                gpu.add_metric([device, "total"], held.total)
        yield from (family for family in (up, restarts, resident, prepared, gpu) if family.samples)


def _by_device(states: Iterable[DeviceState]) -> dict[str, list[DeviceState]]:
    """Two workers may share a device; their series would be the same."""
    found: dict[str, list[DeviceState]] = {}
    for state in states:
        found.setdefault(state.device, []).append(state)
    return found


def _failing_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + _FAILING[0], _FAILING[1], labels=["files"])


def _worker_families() -> tuple[
    GaugeMetricFamily, CounterMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily
]:
    return (
        GaugeMetricFamily(PREFIX + _UP[0], _UP[1], labels=["worker"]),
        CounterMetricFamily(PREFIX + _RESTARTS[0], _RESTARTS[1], labels=["worker"]),
        GaugeMetricFamily(PREFIX + _RESIDENT[0], _RESIDENT[1], labels=["worker"]),
        GaugeMetricFamily(PREFIX + _PREPARED[0], _PREPARED[1], labels=["worker"]),
        GaugeMetricFamily(PREFIX + _GPU[0], _GPU[1], labels=["worker", "state"]),
    )


def _info(facts: ModelFacts | None = None) -> InfoMetricFamily:
    family = InfoMetricFamily(PREFIX + _MODEL[0], _MODEL[1])
    if facts is not None:
        identity = facts.identity
        values = {"model": identity.name, "revision": identity.revision, "dtype": identity.dtype}
        family.add_metric([], values | {"family": facts.family, "device": facts.device})
    return family


def _resident_bytes(pid: int | None) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just died
        return 0
