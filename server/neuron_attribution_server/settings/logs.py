"""Log lines of the server and of its worker processes, on standard error: text for people, or JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

_TEXT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"

_GRPC = "grpc._cython.cygrpc"

LogContext = Callable[[], Mapping[str, str]]
"""What to add to a line that is logged now: the ids of the call that is handled, for instance."""


def configure_logging(level: str, log_format: str = "text", context: LogContext = dict) -> None:
    """Send everything from `level` on to standard error; other libraries only from warnings on.

    Only JSON lines show the context. A line's own fields (`extra={"fields": ...}`) are shown in both formats.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(context) if log_format == "json" else TextFormatter(_TEXT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if log_format == "json":
        logging.captureWarnings(capture=True)
        os.environ.setdefault(
            "HF_HUB_DISABLE_PROGRESS_BARS", "1"
        )  # bars are no lines; read when transformers is imported
    logging.getLogger("neuron_attribution_server").setLevel(level.upper())
    logging.getLogger(_GRPC).addFilter(_is_the_servers_doing)


def _is_the_servers_doing(record: logging.LogRecord) -> bool:
    """What gRPC logs as an error, with a traceback, where a caller leaves amid an answer is none: it is Canceled."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"


class TextFormatter(logging.Formatter):
    """The message, then the fields as NAME=VALUE."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without exception."""
        return super().formatMessage(record) + "".join(f" {name}={value}" for name, value in _fields(record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line. It formats where the line is logged, so that the context is that of the call."""

    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the exception in it."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.processName,
            "message": record.getMessage(),
        }
        line |= {**self._context(), **_fields(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields
