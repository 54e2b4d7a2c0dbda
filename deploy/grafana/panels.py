"""What the dashboard shows, row by row. `$selected` stands for the servers that the variables choose."""

from __future__ import annotations

from dataclasses import dataclass

SERVICE = 'grpc_service="neuron_attribution.v1.NeuronAttributionService"'
ATTRIBUTE = f'{SERVICE}, grpc_method="Attribute"'
AT_FAULT = 'grpc_code=~"Internal|Unavailable|Unknown|DataLoss"'
ACCEPTED = 'grpc_code=~"OK|Canceled|DeadlineExceeded|Internal|Unavailable|Unknown|DataLoss"'
SLOW = 'le="10.0"'
FILL = "neuron_attribution_queue_{0}{{$selected}} / neuron_attribution_queue_capacity_{0}{{$selected}}"
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: its queries by legend. `unit` is an id of Grafana's; `kind` is timeseries, stat or table."""

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    most: float | None = None
    """The top of the axis, where the unit has one."""
    colors: tuple[tuple[float, str], ...] = ()
    """Of a stat: from which value on it has which color."""


def stat(title: str, unit: str, description: str, query: str, *colors: tuple[float, str]) -> Panel:
    """One number, as it is now."""
    return Panel(title, unit, description, {title: query}, kind="stat", width=3, colors=colors)


def per_second(metric: str, *labels: str, matching: str = "") -> str:
    """The rate of a counter, summed over servers but for `labels`."""
    selected = "$selected" + (f", {matching}" if matching else "")
    by = f" by ({', '.join(labels)}) " if labels else ""
    return f"sum{by}(rate({metric}{{{selected}}}[$__rate_interval]))"


def mean(histogram: str, *labels: str) -> str:
    """The mean of what a histogram observed."""
    return f"{per_second(histogram + '_sum', *labels)} / {per_second(histogram + '_count', *labels)}"


def quantile(part: float, histogram: str, *labels: str, matching: str = "") -> str:
    """A quantile of what a histogram observed on all servers together."""
    return f"histogram_quantile({part}, {per_second(histogram + '_bucket', 'le', *labels, matching=matching)})"


def quantiles(histogram: str, matching: str = "") -> dict[str, str]:
    """The median and the two that hurt."""
    return {f"p{round(100 * part)}": quantile(part, histogram, matching=matching) for part in (0.5, 0.95, 0.99)}


def ratio(part: str, whole: str) -> str:
    """A part of a whole that may have no series yet: then none of it."""
    return f"({part} or 0 * {whole}) / {whole}"


def failed(window: str) -> str:
    """The part of the accepted calls that failed by the server's fault."""
    handled = "sum(rate(grpc_server_handled_total{{$selected, {}, {}}}[{}]))"
    return ratio(handled.format(SERVICE, AT_FAULT, window), handled.format(SERVICE, ACCEPTED, window))


def slow(window: str) -> str:
    """The part of the accepted Attribute calls that took more than 10 seconds."""
    seconds = f"sum(rate(grpc_server_handling_seconds_{{}}{{{{$selected, {ATTRIBUTE}{{}}}}}}[{window}]))"
    accepted = f"sum(rate(grpc_server_handled_total{{$selected, {ATTRIBUTE}, {ACCEPTED}}}[{window}]))"
    return f"({seconds.format('count', '')} - {seconds.format('bucket', ', ' + SLOW)}) / {accepted}"


def neurons(state: str) -> str:
    """The part of the existing neurons that came to a state, by part of the model."""
    state_rate, existing = (
        per_second("neuron_attribution_neurons_total", "part", matching=f'state="{each}"')
        for each in (state, "existing")
    )
    return f"{state_rate} / {existing}"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        stat(
            "Firing alerts",
            "short",
            "Alerts of this service that fire. docs/runbooks has a page for each.",
            'count(ALERTS{alertname=~"NeuronAttribution.+", alertstate="firing"}) or vector(0)',
            (0, "green"),
            (1, "red"),
        ),
        stat(
            "Ready servers",
            "short",
            "Servers whose health says SERVING.",
            "sum(neuron_attribution_ready{$selected})",
            (0, "red"),
            (1, "green"),
        ),
        stat(
            "Draining servers",
            "short",
            "Servers that were told to stop and finish what they took.",
            "sum(neuron_attribution_draining{$selected})",
            (0, "green"),
            (1, "orange"),
        ),
        stat(
            "Live workers",
            "short",
            "Worker processes that are loaded, warm and alive; one per device.",
            "sum(neuron_attribution_worker_up{$selected})",
            (0, "red"),
            (1, "green"),
        ),
        stat(
            "Failed calls, 1 h",
            "percentunit",
            "The part of the accepted calls that failed by the server's fault. The objective allows 0.1 %.",
            failed("1h"),
            (0, "green"),
            (0.001, "red"),
        ),
        stat(
            "Slow calls, 1 h",
            "percentunit",
            "The part of the accepted Attribute calls that took more than 10 seconds. The objective allows 1 %.",
            slow("1h"),
            (0, "green"),
            (0.01, "red"),
        ),
        stat(
            "Fullest queue",
            "percentunit",
            "The fullest queue of all servers, by requests or tokens. At 100 % calls are refused.",
            f"max({FILL.format('requests')} > {FILL.format('tokens')} or {FILL.format('tokens')})",
            (0, "green"),
            (0.8, "red"),
        ),
        stat(
            "Certificate expires in",
            "s",
            "Of the certificates that are served, the one that expires first. Empty without TLS.",
            "min(neuron_attribution_certificate_expiry_timestamp_seconds{$selected}) - time()",
            (0, "red"),
            (2 * DAY, "orange"),
            (14 * DAY, "green"),
        ),
        Panel(
            "Models",
            "none",
            "What each server serves.",
            {"": "neuron_attribution_model_info{$selected}"},
            kind="table",
            width=12,
        ),
        Panel(
            "Builds",
            "none",
            "What each server runs.",
            {"": "neuron_attribution_build_info{$selected}"},
            kind="table",
            width=12,
        ),
    ),
    "Traffic": (
        Panel(
            "Calls by method",
            "reqps",
            "Calls that arrived, a second. A stream is one call, however many items it has.",
            {"{{grpc_method}}": per_second("grpc_server_started_total", "grpc_method", matching=SERVICE)},
        ),
        Panel(
            "Calls in flight",
            "short",
            "Calls that arrived and have not been answered.",
            {
                "{{instance}}": f"sum by (instance) (grpc_server_started_total{{$selected, {SERVICE}}})"
                f" - (sum by (instance) (grpc_server_handled_total{{$selected, {SERVICE}}})"
                f" or 0 * sum by (instance) (grpc_server_started_total{{$selected, {SERVICE}}}))"
            },
        ),
        Panel(
            "Explained tokens",
            "cps",
            "Next-token predictions that were explained, a second.",
            {"{{instance}}": per_second("neuron_attribution_explained_tokens_total", "instance")},
        ),
    ),
    "Errors": (
        Panel(
            "Calls by status",
            "reqps",
            "Calls that ended, a second. Internal, Unavailable, Unknown and DataLoss are the server's fault.",
            {"{{grpc_code}}": per_second("grpc_server_handled_total", "grpc_code", matching=SERVICE)},
        ),
        Panel(
            "Failed calls",
            "percentunit",
            "The part of the accepted calls that failed by the server's fault. The objective allows 0.1 %.",
            {"failed": failed("$__rate_interval")},
        ),
        Panel(
            "Refused calls by reason",
            "reqps",
            "Calls refused, a second, by the reason that their error gives. QUEUE_FULL: all callers together are too "
            "many; TENANT_QUEUE_FULL: one of them is.",
            {"{{reason}}": per_second("neuron_attribution_rejected_total", "reason")},
        ),
    ),
    "Latency": (
        Panel(
            "Attribute calls",
            "s",
            "How long Attribute calls took, refused ones included. The objective: 99 % under 10 seconds.",
            quantiles("grpc_server_handling_seconds", matching=ATTRIBUTE),
        ),
        Panel(
            "p95 by method",
            "s",
            "How long 95 % of the calls took at most. A stream lasts as long as its corpus.",
            {"{{grpc_method}}": quantile(0.95, "grpc_server_handling_seconds", "grpc_method", matching=SERVICE)},
        ),
        Panel(
            "Slow Attribute calls",
            "percentunit",
            "The part of the accepted Attribute calls that took more than 10 seconds. The objective allows 1 %.",
            {"slow": slow("$__rate_interval")},
        ),
        Panel(
            "Wait in the queue",
            "s",
            "How long requests waited for their batch.",
            quantiles("neuron_attribution_queue_wait_seconds"),
        ),
        Panel(
            "Stages, mean",
            "s",
            "Where the time goes. Tokenization is per request, the others per batch; bound and exact are parts of "
            "scoring.",
            {"{{stage}}": mean("neuron_attribution_stage_seconds", "stage")},
        ),
        Panel(
            "Stages, p95",
            "s",
            "The same, for the slowest twentieth.",
            {"{{stage}}": quantile(0.95, "neuron_attribution_stage_seconds", "stage")},
        ),
    ),
    "Queue": (
        Panel(
            "Requests waiting",
            "short",
            "Requests that wait for a batch, and how many may.",
            {
                "{{instance}}": "neuron_attribution_queue_requests{$selected}",
                "{{instance}} limit": "neuron_attribution_queue_capacity_requests{$selected}",
            },
        ),
        Panel(
            "Tokens waiting",
            "short",
            "Tokens of the requests that wait, and how many may. Scale out by this.",
            {
                "{{instance}}": "neuron_attribution_queue_tokens{$selected}",
                "{{instance}} limit": "neuron_attribution_queue_capacity_tokens{$selected}",
            },
        ),
        Panel(
            "Queue fill",
            "percentunit",
            "Requests waiting, of those that may; tokens likewise. At 100 % calls are refused.",
            {
                "{{instance}} requests": FILL.format("requests"),
                "{{instance}} tokens": FILL.format("tokens"),
            },
            most=1,
        ),
    ),
    "Batches": (
        Panel(
            "Requests per batch",
            "short",
            "How many requests share a forward pass. One under load means that batching does not work.",
            {"mean": mean("neuron_attribution_batch_requests"), **quantiles("neuron_attribution_batch_requests")},
        ),
        Panel(
            "Tokens per batch",
            "short",
            "How many tokens share a forward pass, without padding.",
            {"mean": mean("neuron_attribution_batch_tokens"), **quantiles("neuron_attribution_batch_tokens")},
        ),
        Panel(
            "Padding",
            "percentunit",
            "The part of a batch that is padding: work for nothing.",
            {"mean": mean("neuron_attribution_batch_padding_ratio")},
            most=1,
        ),
    ),
    "Attribution": (
        Panel(
            "Neurons bounded",
            "percentunit",
            "Of the neurons that exist, those whose score was bounded.",
            {"{{part}}": neurons("bounded")},
        ),
        Panel(
            "Neurons scored",
            "percentunit",
            "Of the neurons that exist, those that were scored exactly: the fewer, the tighter the bounds. "
            "The time of the exact stage grows with it.",
            {"{{part}}": neurons("scored")},
        ),
        Panel(
            "Inexact rankings",
            "short",
            "Rankings of the last hour that could not be claimed exact. None is normal.",
            {"{{part}}": "sum by (part) (increase(neuron_attribution_inexact_rankings_total{$selected}[1h]))"},
        ),
    ),
    "Workers and memory": (
        Panel(
            "Workers up",
            "short",
            "1 while the worker process is loaded, warm and alive.",
            {"{{instance}} {{worker}}": "neuron_attribution_worker_up{$selected}"},
            most=1,
        ),
        Panel(
            "Worker restarts",
            "short",
            "Restarts within 10 minutes. More than are allowed, by default 5, end the server with exit status 1.",
            {"{{instance}} {{worker}}": "increase(neuron_attribution_worker_restarts_total{$selected}[10m])"},
        ),
        Panel(
            "Out of memory",
            "short",
            "Within the last hour: batches that did not fit and were split, and requests that do not fit even alone.",
            {
                "{{instance}} splits": "increase(neuron_attribution_out_of_memory_splits_total{$selected}[1h])",
                "{{instance}} failures": "increase(neuron_attribution_out_of_memory_failures_total{$selected}[1h])",
            },
        ),
        Panel(
            "Worker memory",
            "bytes",
            "Resident memory of the worker processes.",
            {"{{instance}} {{worker}}": "neuron_attribution_worker_resident_memory_bytes{$selected}"},
        ),
        Panel(
            "GPU memory",
            "bytes",
            "Allocated to tensors, reserved by PyTorch, and what the device has. Empty without a GPU.",
            {"{{instance}} {{worker}} {{state}}": "neuron_attribution_gpu_memory_bytes{$selected}"},
        ),
        Panel(
            "Front end memory",
            "bytes",
            "Resident memory of the server's front end, which holds queue and cache.",
            {"{{instance}}": "process_resident_memory_bytes{$selected}"},
        ),
        Panel(
            "Front end processor time",
            "percentunit",
            "Of one core. The front end has one event loop: near 100 % it is the limit, and more servers help.",
            {"{{instance}}": per_second("process_cpu_seconds_total", "instance")},
        ),
        Panel(
            "Front end open files",
            "short",
            "Open file descriptors: connections, pipes, files.",
            {
                "{{instance}}": "process_open_fds{$selected}",
                "{{instance}} limit": "process_max_fds{$selected}",
            },
        ),
    ),
    "Cache": (
        Panel(
            "Answers from the cache",
            "percentunit",
            "The part of the Attribute requests that were answered before.",
            {
                "hits": f"{per_second('neuron_attribution_cache_hits_total')}"
                f" / ({per_second('neuron_attribution_cache_hits_total')}"
                f" + {per_second('neuron_attribution_cache_misses_total')})"
            },
            most=1,
        ),
        Panel(
            "Cache look-ups",
            "reqps",
            "Look-ups, a second.",
            {
                "hits": per_second("neuron_attribution_cache_hits_total"),
                "misses": per_second("neuron_attribution_cache_misses_total"),
            },
        ),
        Panel(
            "Cache size",
            "bytes",
            "What the kept answers take, and what they may.",
            {
                "{{instance}}": "neuron_attribution_cache_bytes{$selected}",
                "{{instance}} limit": "neuron_attribution_cache_capacity_bytes{$selected}",
            },
        ),
    ),
}
