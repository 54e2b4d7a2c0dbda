"""One frozen dataclass of everything the server can be told, from flags and environment variables; flags win."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from neuron_attribution.cli.options import boolean
from neuron_attribution.results import Limits

ENVIRONMENT_PREFIX = "NEURON_ATTRIBUTION_"
_LONGEST_MESSAGE = 2**31 - 1  # gRPC takes message sizes as signed 32-bit numbers


class ConfigurationError(ValueError):
    """A setting is missing or wrong; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How to load the model. `threads` None leaves the number of CPU threads to PyTorch."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    trust_remote_code: bool = False
    pickled_weights: bool = False
    device_map: str | None = None
    device_memory: str | None = None
    adapter: str | None = None
    guess_architecture: bool = False


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    """Read a number of `kind` between two bounds, both included."""

    def read(text: str) -> float:
        noun = "a whole number" if kind is int else "a number"
        try:
            value = kind(text)
        except ValueError:
            raise ConfigurationError(f"{text!r} is not {noun}") from None
        if not least <= value <= most:
            raise ConfigurationError(f"{text} is not {noun} between {least:g} and {most:g}")
        return value

    return read


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ConfigurationError(f"{text!r} is not {expected}")
        return text

    return read


def _one_of(*choices: str) -> Callable[[str], str]:
    return _matching("|".join(choices), "one of " + ", ".join(choices))


def _listen_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{text!r} is not HOST:PORT with a port from 0 to 65535")
    return text


def _switch(text: str) -> bool:
    try:
        return boolean(text)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _setting(read: Callable[[str], Any], text: str, default: Any = MISSING) -> Any:  # noqa: ANN401 - as dataclasses.field
    return field(default=default, metadata={"read": read, "help": text})


_text = _matching("(?s).+", "a text of at least one character")
_count = _number(int, 1, _LONGEST_MESSAGE)
_seconds = _number(float, 0, 86_400)
_DEVICES = r"auto|cpu|cuda|cuda:\d+(,cuda:\d+)*"
_HOLDS = r"(cpu|cuda:\d+)=\d+(\.\d+)?[KMGT]i?B"
_MEMORY = rf"{_HOLDS}(,{_HOLDS})*"
_age = _number(float, 1, 86_400)
_work_seconds = _number(float, 0.01, 86_400)
_bytes = _number(int, 1024, 2**40)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The server's settings; `help` and `read` of each field serve the command line and the environment alike."""

    model: str = _setting(_text, "the model: demo, a Hub id, a folder, or a GGUF file")
    revision: str | None = _setting(_text, "the revision of a model from the Hub", None)
    adapter: str | None = _setting(
        _text, "the folder of a LoRA adapter, as peft saves it, which is merged into the model when it is loaded", None
    )
    dtype: str = _setting(_one_of("auto", "float32", "float16", "bfloat16"), "the type of the weights", "auto")
    device: str = _setting(_matching(_DEVICES, "auto, cpu, cuda, cuda:N or cuda:N,cuda:M"), "where it runs", "auto")
    device_map: str | None = _setting(
        _one_of("auto", "balanced", "balanced_low_0", "sequential"),
        "how transformers spreads the layers of a model that no device holds alone over all GPUs, main memory and disk",
        None,
    )
    device_memory: str | None = _setting(
        _matching(_MEMORY, "such as cuda:0=20GiB,cuda:1=20GiB,cpu=64GiB"),
        "the weights that each device may hold when they are spread by device_map; what fits nowhere stays on disk",
        None,
    )
    threads: int | None = _setting(
        _number(int, 1, 4096),
        "CPU threads of the model (default: the processors, or those of the container's quota)",
        None,
    )
    trust_remote_code: bool = _setting(_switch, "whether code that comes with the model may run here", False)
    pickled_weights: bool = _setting(
        _switch, "whether weights may be pickles, which can run code, where there are no safetensors", False
    )
    guess_architecture: bool = _setting(
        _switch,
        "whether a model of a type that nobody has described is served where a description of it can be found and "
        "proven when it is loaded, which takes longer and, of weights in half precision, twice their memory",
        False,
    )
    listen: str = _setting(_listen_address, "HOST:PORT to listen on; port 0 takes any free one", "localhost:50051")
    maximum_tokens: int = _setting(_count, "tokens per request, at most the model's own maximum", 4096)
    maximum_top_k: int = _setting(_count, "the largest top_k, projection_top_k and query_sources", 1000)
    maximum_explained_tokens: int = _setting(_count, "explained tokens per request", 128)
    maximum_exhaustive_scores: int = _setting(
        _number(int, 0, 2**62),
        "vocabulary scores that an exhaustive request may take: explained tokens x neurons, attention neurons at each "
        "position, x vocabulary; they must fit into batch_timeout",
        2**34,
    )
    maximum_request_seconds: float | None = _setting(
        _work_seconds,
        "seconds of a worker's time that one request may be predicted to take (default: a third of batch_timeout)",
        None,
    )
    maximum_neurons: int = _setting(_count, "neurons named in one request or in one set of interventions", 1000)
    maximum_intervention_sets: int = _setting(_count, "sets of interventions in one request", 32)
    maximum_trace_nodes: int = _setting(_count, "FFN neurons that the graph of a trace may keep", 500)
    maximum_trace_screened: int = _setting(_count, "FFN neurons that may be measured for a graph", 4096)
    maximum_message_bytes: int = _setting(_number(int, 1024, _LONGEST_MESSAGE), "bytes per answer", 64 * 2**20)
    maximum_request_bytes: int = _setting(_number(int, 1024, _LONGEST_MESSAGE), "bytes per request", 4 * 2**20)
    stream_window: int = _setting(_count, "items of one stream that are read and not yet answered", 64)
    maximum_key_bytes: int = _setting(_count, "bytes of the key of a stream's item", 1024)
    unread_bytes: int = _setting(
        _bytes,
        "bytes of answers that are computed or not yet read by their callers, each counted two or three times as it is "
        "copied on its way",
        512 * 2**20,
    )
    held_request_bytes: int = _setting(
        _bytes,
        "bytes of requests that come in or are not yet answered; one that is awaited counts as maximum_request_bytes",
        256 * 2**20,
    )
    transfer_timeout: float = _setting(
        _number(float, 0.1, 86_400),
        "seconds a caller may take to send a request, or to read 4 MiB of an answer or all of a shorter one, before "
        "its call is ended",
        120.0,
    )
    cache_bytes: int = _setting(_number(int, 0, 2**40), "bytes of answers that are kept to be given again", 64 * 2**20)
    maximum_connection_age: float = _setting(_age, "seconds after which clients connect anew, to new replicas", 1800.0)
    connection_grace: float = _setting(_age, "seconds that calls on such an old connection may still take", 3600.0)
    maximum_connections: int = _setting(
        _count,
        "connections to an address of the gRPC port, and at most a third of the file descriptors that the process may "
        "have; further ones are closed at once",
        1000,
    )
    queued_requests: int = _setting(_count, "requests that may wait", 256)
    queued_tokens: int = _setting(_count, "tokens that may wait", 65_536)
    queued_seconds: float = _setting(
        _work_seconds, "seconds of a worker's time that waiting requests may be predicted to take", 600.0
    )
    batch_tokens: int = _setting(_count, "tokens per batch, padding included", 8192)
    batch_requests: int = _setting(_count, "requests per batch", 32)
    batch_seconds: float = _setting(
        _work_seconds, "seconds that the requests of a batch of several may be predicted to take one by one", 30.0
    )
    maximum_wait: float = _setting(_seconds, "seconds an idle worker waits for calls on their way", 0.002)
    maximum_age: float = _setting(
        _seconds,
        "seconds after which a waiting request goes before its tenant's younger ones, however their lengths differ",
        5.0,
    )
    tenant_share: float = _setting(
        _number(float, 0.01, 1),
        "the part of queued_requests, queued_tokens, queued_seconds, unread_bytes and held_request_bytes that one "
        "tenant may fill; it may always have one request waiting, and anonymous callers share all of them",
        0.5,
    )
    drain_delay: float = _setting(
        _seconds, "seconds that new calls are still taken after a stop signal, while health says NOT_SERVING", 0.0
    )
    grace: float = _setting(_seconds, "seconds that running calls may take to finish after a stop signal", 30.0)
    heartbeat_timeout: float = _setting(
        _number(float, 2, 86_400), "seconds without a sign of life after which a worker process is killed", 30.0
    )
    load_timeout: float = _setting(
        _number(float, 0.1, 86_400), "seconds loading the model may take before its worker process is killed", 3600.0
    )
    batch_timeout: float = _setting(
        _number(float, 0.1, 86_400), "seconds a batch may run before its worker process is killed", 300.0
    )
    restarts: int = _setting(
        _number(int, 0, 1000), "restarts of a worker process within the restart window before the server gives up", 5
    )
    restart_window: float = _setting(_seconds, "seconds within which restarts are counted", 600.0)
    spare_worker: bool = _setting(
        _switch, "whether a worker's next process is kept ready, all but its model: a restart takes half as long", False
    )
    tls_certificate: str | None = _setting(
        _text, "PEM file of the certificate, read again when it changes; without one, no TLS", None
    )
    tls_key: str | None = _setting(_text, "PEM file of the certificate's key", None)
    tls_client_authority: str | None = _setting(
        _text, "PEM file of the authority whose certificates clients must have", None
    )
    token_file: str | None = _setting(
        _text,
        "file of valid bearer tokens, read again when it changes: lines TENANT SHA256HEX, the latter from "
        "`printf %s TOKEN | sha256sum`; without one, no token is asked for",
        None,
    )
    open_health: bool = _setting(_switch, "whether health needs no token", True)
    open_reflection: bool = _setting(_switch, "whether reflection needs no token", False)
    reflection: bool = _setting(_switch, "whether the service can be listed and described by reflection", True)
    health_listen: str | None = _setting(
        _listen_address, "HOST:PORT where health, and nothing else, is served without TLS and tokens", None
    )
    metrics_listen: str | None = _setting(
        _listen_address, "HOST:PORT where metrics are served over HTTP, without TLS and tokens, for Prometheus", None
    )
    web: str | None = _setting(
        _listen_address,
        "HOST:PORT where the web page, and the calls as JSON, are served over HTTP, with the certificate and tokens "
        "that the service has",
        None,
    )
    web_connections: int = _setting(_count, "HTTP connections that may be open to the web page at a time", 256)
    trace_endpoint: str | None = _setting(
        _matching(r"https?://[^\s/]+/?", "http://HOST:PORT, or https://HOST:PORT for TLS"),
        "URL of the OpenTelemetry collector (OTLP over gRPC) that traces are sent to, such as http://localhost:4317; "
        "without one, no traces",
        None,
    )
    trace_ratio: float = _setting(
        _number(float, 0, 1), "the part of traces that is sampled; a caller's own trace is if the caller says so", 1.0
    )
    log_format: str = _setting(
        _one_of("text", "json"), "the format of log lines: text for people, json for production", "text"
    )
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "how much is logged", "info")

    def __post_init__(self) -> None:
        if self.queued_tokens < self.maximum_tokens:
            raise ConfigurationError(
                f"queued_tokens ({self.queued_tokens}) is less than maximum_tokens ({self.maximum_tokens}): "
                "the longest request could never be queued; raise the one or lower the other"
            )

        if self.device_map is not None and self.device != "auto":
            raise ConfigurationError("device_map spreads the model over all devices: leave device at auto")
        if self.device_map is not None and self.adapter is not None:
            raise ConfigurationError(
                "adapter and device_map: an adapter is merged into whole models only; merge it once by peft "
                "(merge_and_unload), save the model, and spread that"
            )
        if self.device_memory is not None and self.device_map is None:
            raise ConfigurationError("device_memory without device_map: it limits how device_map auto spreads a model")
        if self.guess_architecture and self.device_map is not None:
            raise ConfigurationError(
                "guess_architecture with device_map: a guess is proven on one device; leave one of them out"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_certificate else ("tls_key", "tls_certificate")
            raise ConfigurationError(f"{given} without {missing}: give both for TLS, or neither")
        if self.tls_client_authority is not None and self.tls_certificate is None:
            raise ConfigurationError(
                "tls_client_authority without tls_certificate and tls_key: it needs TLS, give both"
            )

    @property
    def request_seconds(self) -> float:
        """Seconds of a worker's time that one request may be predicted to take."""
        given = self.maximum_request_seconds
        return self.batch_timeout / 3 if given is None else given

    @property
    def load_settings(self) -> tuple[LoadSettings, ...]:
        """What the worker of each device needs to load the model."""
        devices = self.device.split(",")
        return tuple(
            LoadSettings(
                self.model,
                self.revision,
                self.dtype,
                each,
                self.threads,
                self.trust_remote_code,
                self.pickled_weights,
                self.device_map,
                self.device_memory,
                self.adapter,
                self.guess_architecture,
            )
            for each in devices
        )

    @property
    def call_unread_bytes(self) -> int:
        """What one call may hold of unread_bytes: the largest answer, with its copies."""
        return min(self.unread_bytes, 3 * self.maximum_message_bytes)

    def limits(self, model_tokens: int) -> Limits:
        """What the service accepts, for a model of at most `model_tokens` positions."""
        return Limits(
            tokens=min(self.maximum_tokens, model_tokens),
            top_k=self.maximum_top_k,
            explained_tokens=self.maximum_explained_tokens,
            exhaustive_scores=self.maximum_exhaustive_scores,
            neurons=self.maximum_neurons,
            message_bytes=self.maximum_message_bytes,
            queued_requests=self.queued_requests,
            queued_tokens=self.queued_tokens,
            batch_tokens=self.batch_tokens,
            batch_requests=self.batch_requests,
            maximum_wait=self.maximum_wait,
            maximum_age=self.maximum_age,
            tenant_share=self.tenant_share,
            request_bytes=self.maximum_request_bytes,
            stream_window=self.stream_window,
            intervention_sets=self.maximum_intervention_sets,
            request_seconds=self.request_seconds,
            queued_seconds=self.queued_seconds,
            batch_seconds=self.batch_seconds,
            key_bytes=self.maximum_key_bytes,
            unread_bytes=self.unread_bytes,
            held_request_bytes=self.held_request_bytes,
            transfer_timeout=self.transfer_timeout,
            call_unread_bytes=self.call_unread_bytes,
            trace_nodes=self.maximum_trace_nodes,
            trace_screened=self.maximum_trace_screened,
        )


GROUPS = {
    "the model": (
        *("model", "revision", "adapter", "dtype", "device", "device_map", "device_memory", "threads"),
        *("trust_remote_code", "pickled_weights", "guess_architecture"),
    ),
    "the network": ("listen", "health_listen", "metrics_listen", "web", "web_connections"),
    "security": (
        *("tls_certificate", "tls_key", "tls_client_authority", "token_file"),
        *("open_health", "open_reflection", "reflection"),
    ),
    "operations": (
        *("grace", "drain_delay", "restarts", "restart_window", "spare_worker", "load_timeout", "heartbeat_timeout"),
        *("batch_timeout", "trace_endpoint", "trace_ratio", "log_format", "log_level"),
    ),
}
"""The settings by what they are about; those that are in no other group are limits."""


def is_switch(setting: Field[Any]) -> bool:
    """Whether a setting is on or off."""
    return setting.metadata["read"] is _switch


def flag_name(setting: str) -> str:
    """The command line's name of a setting."""
    return "--" + setting.replace("_", "-")


def environment_name(setting: str) -> str:
    """The environment's name of a setting."""
    return ENVIRONMENT_PREFIX + setting.upper()


def read_config(
    flags: Mapping[str, str | None], environment: Mapping[str, str], file: Mapping[str, str] | None = None
) -> ServerConfig:
    """Build the configuration from the texts of the flags, by setting, of the environment, and of a file.

    Flags win over variables, and those over the file.

    Raises ConfigurationError.
    """
    values = {}
    for setting in fields(ServerConfig):
        source, text = _given(setting, flags, environment, file or {})
        if text is not None:
            values[setting.name] = _read(setting, source, text)
        elif setting.default is MISSING:
            raise ConfigurationError(f"{flag_name(setting.name)} is missing: name {setting.metadata['help']}")
    return ServerConfig(**values)


def _given(
    setting: Field[Any], flags: Mapping[str, str | None], environment: Mapping[str, str], file: Mapping[str, str]
) -> tuple[str, str | None]:
    flag = flags.get(setting.name)
    if flag is not None:
        return flag_name(setting.name), flag
    name = environment_name(setting.name)
    if text := environment.get(name):  # deployment files cannot always leave a variable out: empty is unset
        return name, text
    return f"{setting.name} in the file", file.get(setting.name)


def _read(setting: Field[Any], source: str, text: str) -> Any:  # noqa: ANN401 - a setting's value
    try:
        return setting.metadata["read"](text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None
