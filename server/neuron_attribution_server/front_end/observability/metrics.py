"""The metrics that are counted as things happen. One registry a server; all labels are bounded and known beforehand."""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, disable_created_metrics

from neuron_attribution_server.tasks.reports import BatchReport, GpuMemory, RankingCounts

PREFIX = "neuron_attribution_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(2**power for power in range(3, 17))
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATIO = (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)
TIMES = (0.1, 0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3, 5, 10)
REASONS = (
    "DEADLINE_EXCEEDED",
    "HELD_REQUESTS",
    "MODEL_LOADING",
    "OUT_OF_MEMORY",
    "QUEUE_FULL",
    "REQUEST_TOO_SLOW",
    "RESPONSE_TOO_LARGE",
    "TENANT_QUEUE_FULL",
    "TOKEN_INVALID",
    "TOKEN_MISSING",
    "UNREAD_ANSWERS",
    "WORKER_DIED",
    "WORKER_GONE",
    "WORKER_RESTARTING",
)
"""Why calls are refused. A test finds the reasons in the code; one that is not here is counted as OTHER."""
OTHER = "OTHER"

Exemplar = dict[str, str] | None

# Times of creation would double the series, and nothing here needs them. Every server of a process wants it so.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What is counted of calls and batches; each labelled child is made once and kept."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._build_info()
        self._queue_wait = self._histogram("queue_wait_seconds", "How long requests waited for their batch.", SECONDS)
        self._batch_requests = self._histogram("batch_requests", "Requests in a batch.", REQUESTS)
        self._batch_tokens = self._histogram("batch_tokens", "Tokens in a batch, padding left out.", TOKENS)
        self._padding = self._histogram(
            "batch_padding_ratio", "Part of a batch's tokens that is padding, from 0 to 1.", RATIO
        )
        stages = self._histogram(
            "stage_seconds",
            "Tokenization of a request; forward pass and scoring of a batch; bound and exact are parts of scoring.",
            SECONDS,
            ("stage",),
        )
        self._tokenization, self._forward, self._scoring, self._bound, self._exact = (
            stages.labels(stage) for stage in ("tokenization", "forward", "scoring", "bound", "exact")
        )
        self._explained_tokens = self._counter(
            "explained_tokens_total", "Next-token predictions explained; those from the cache are not counted."
        )
        neurons = self._counter(
            "neurons_total",
            "Value neurons that existed, were bounded and were scored exactly, added up over rankings.",
            ("part", "state"),
        )
        inexact = self._counter("inexact_rankings_total", "Rankings that could not be claimed exact.", ("part",))
        self._rankings = {part: _RankingMetrics(neurons, inexact, part) for part in ("ffn", "attention")}
        self._predicted = self._counter(
            "worker_predicted_seconds_total",
            "Worker time that batches were predicted to take; those that were stopped apart.",
        )
        self._worked = self._counter(
            "worker_seconds_total", "Worker time that batches took, but for those that were stopped."
        )
        self._ratio = self._histogram("worker_time_ratio", "Worker time that a batch took, to its prediction.", TIMES)
        self._stopped = self._counter(
            "batches_stopped_total", "Batches that were stopped because nobody waited for them any more."
        )
        self._splits = self._counter(
            "out_of_memory_splits_total", "Batches that were split in halves because memory ran out."
        )
        self._failures = self._counter(
            "out_of_memory_failures_total", "Requests that failed because memory ran out even for them alone."
        )
        rejected = self._counter(
            "rejected_total",
            "Calls and stream items refused as RESOURCE_EXHAUSTED, UNAVAILABLE, DEADLINE_EXCEEDED or UNAUTHENTICATED.",
            ("reason",),
        )
        self._rejected = {reason: rejected.labels(reason) for reason in (*REASONS, OTHER)}
        self._unread = self._counter(
            "unread_calls_total", "Calls that the server ended because their callers did not read an answer in time."
        )
        self.gpu_memory: dict[str, GpuMemory] = {}
        """What each device last reported."""

    def rejected(self, reason: str) -> None:
        """Count a refusal."""
        self._rejected.get(reason, self._rejected[OTHER]).inc()

    def unread(self) -> None:
        """Count a call whose caller did not read an answer in time."""
        self._unread.inc()

    def tokenized(self, seconds: float) -> None:
        """Note how long a request took to be read and tokenized."""
        self._tokenization.observe(seconds)

    def waited(self, seconds: float, exemplar: Exemplar) -> None:
        """Note how long a request waited for its batch."""
        self._queue_wait.observe(seconds, exemplar)

    def batch_begins(self, requests: int, tokens: int, padded: int) -> None:
        """Note the size of a batch: its requests, their tokens in the forward pass, and those with padding."""
        self._batch_requests.observe(requests)
        if tokens:
            self._batch_tokens.observe(tokens)
            self._padding.observe(1 - tokens / padded)

    def batch_predicted(self, predicted: float, report: BatchReport) -> None:
        """Compare what a batch was predicted to take with what it took."""
        if report.stopped:
            self._stopped.inc()
        elif predicted > 0:
            self._predicted.inc(predicted)
            self._worked.inc(report.seconds)
            self._ratio.observe(report.seconds / predicted)

    def batch_reported(self, report: BatchReport) -> None:
        """Add up what a worker reports of a batch."""
        for each in report.passes:
            self._forward.observe(each.forward)
            self._scoring.observe(each.scoring)
            self._bound.observe(each.bound)
            self._exact.observe(each.exact)
        self._explained_tokens.inc(report.explained_tokens)
        self._rankings["ffn"].add(report.ffn)
        self._rankings["attention"].add(report.attention)
        self._splits.inc(report.out_of_memory_splits)
        self._failures.inc(report.out_of_memory_failures)
        if report.gpu_memory is not None:
            self.gpu_memory[report.device] = report.gpu_memory

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def _build_info(self) -> None:
        build = Info(PREFIX + "build", "The versions that run; always 1.", registry=self.registry)
        packages = {"version": "neuron-attribution", "grpcio": "grpcio", "torch": "torch"}
        build.info({"python": platform.python_version()} | {name: version(each) for name, each in packages.items()})


class _RankingMetrics:
    """The counters of one part's rankings."""

    def __init__(self, neurons: Counter, inexact: Counter, part: str) -> None:
        self._existing, self._bounded, self._scored = (
            neurons.labels(part, state) for state in ("existing", "bounded", "scored")
        )
        self._inexact = inexact.labels(part)

    def add(self, counts: RankingCounts) -> None:
        self._existing.inc(counts.existing)
        self._bounded.inc(counts.bounded)
        self._scored.inc(counts.scored)
        self._inexact.inc(counts.inexact)
