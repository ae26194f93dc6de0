"""Structured logs: one JSON object per line on standard output.

Lines are pure ASCII, so that no character of a query (U+2028, NEL) can break a line. Loggers of the
standard library (uvicorn) take the same way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.telemetry.line_buffer import LineBuffer

_ENCODER = json.JSONEncoder(default=repr, separators=(",", ":"))

QueryMode = Literal["hash", "plain", "off"]


class _Clock:
    """Adds ISO 8601 timestamps in UTC; formats each second once."""

    def __init__(self) -> None:
        self._known = -1, ""
        """A second since the epoch and its text; one object because threads share it."""

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        known, written = self._known
        if second != known:
            written = datetime.fromtimestamp(second, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._known = second, written
        event["timestamp"] = f"{written}.{nanoseconds // 1000:06d}Z"
        return event


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    _Clock(),
    structlog.processors.format_exc_info,
)


class _Lines(structlog.PrintLogger):
    """Writes lines; drops a line that cannot be written.

    A full disk or a closed pipe must not fail the request.
    """

    def msg(self, message: str) -> None:
        flush()
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            super().msg(message)

    def info(self, message: str) -> None:
        """Lines at level "info" may wait for the batch."""
        if not _batch.keep(message):
            self.msg(message)

    log = debug = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class _Handler(logging.StreamHandler[TextIO]):
    """Writes the lines of libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        flush()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


def configure_logging(level: str) -> None:
    """Send structlog and the standard library's loggers to standard output as JSON lines.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_SHARED, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_SHARED],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in ("uvicorn", "asyncio"):  # at "info" they repeat our own lines
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def batched_writes() -> AbstractContextManager[None]:
    """Within this context, "info" lines are written once per iteration of the event loop.

    Enter it in the event loop. The order of lines stays, and its end writes the rest.
    """
    return _batch.batched_writes()


def flush() -> None:
    """Write the batched lines now."""
    _batch.flush()


def _write(lines: Sequence[str]) -> None:
    with suppress(OSError, ValueError):
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


_batch = LineBuffer(_write)


def render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One event as one line of ASCII JSON; ``repr`` writes what JSON cannot."""
    try:
        line = orjson.dumps(event)
    except TypeError:  # a lone surrogate or an unknown type
        line = b"\xff"
    # orjson does not escape other alphabets, and some of their characters end a line.
    return line.decode("ascii") if line.isascii() else _ENCODER.encode(event)


def query_fields(mode: QueryMode, *, salt: str = "") -> Callable[[str], Mapping[str, str]]:
    """A function from a query to its log fields.

    A query can be personal data. ``hash`` (64 bits of keyed BLAKE2b) lets lines about one query be
    joined. Common queries can be guessed from their hash unless the ``salt`` is secret.
    """
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest() if salt else b""

    def hashed(query: str) -> Mapping[str, str]:
        digest = hashlib.blake2b(
            query.encode("utf-8", "surrogatepass"), digest_size=8, key=key
        ).hexdigest()
        return {"query_hash": digest}

    if mode == "plain":
        return lambda query: {"query": query}
    if mode == "hash":
        return hashed
    return lambda _query: {}
