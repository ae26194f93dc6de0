"""Structured logs: one JSON object per line on standard output, whatever a shopper types.

Lines are pure ASCII (everything else is escaped), so no character of a query, not even U+2028 or
NEL, can break a line for any reader. Standard-library loggers (uvicorn) go the same way.
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
    """Stamps events as ISO 8601 in UTC; what a second has in common is formatted once."""

    def __init__(self) -> None:
        self._known = -1, ""
        """A second since the epoch and how it is written; one object, since threads share it."""

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
    """Writes lines; one that cannot be written is lost, and nothing else is.

    A full disk under the log, or a reader who has gone, must not fail the request that is told of.
    """

    def msg(self, message: str) -> None:
        flush()
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            super().msg(message)

    def info(self, message: str) -> None:
        """What went well may wait for the end of the loop's turn."""
        if not _turn.keep(message):
            self.msg(message)

    log = debug = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class _Handler(logging.StreamHandler[TextIO]):
    """The same for the lines of libraries."""

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
    for name in ("uvicorn", "asyncio"):  # what they tell at "info" is in our own lines
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def batched_writes() -> AbstractContextManager[None]:
    """While this is open, lines about what went well are written once in each turn of the loop.

    To be entered in the event loop. They keep their places among the other lines, and all are
    written when it ends.
    """
    return _turn.batched_writes()


def flush() -> None:
    """Write now what waits for the end of the loop's turn."""
    _turn.flush()


def _write(lines: Sequence[str]) -> None:
    with suppress(OSError, ValueError):
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


_turn = LineBuffer(_write)


def render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One event as one line of ASCII JSON; what JSON has no form for is written by ``repr``."""
    try:
        line = orjson.dumps(event)
    except TypeError:  # a lone surrogate, or a type that it does not know
        line = b"\xff"
    # orjson leaves other alphabets as they are, and with them characters that end a line.
    return line.decode("ascii") if line.isascii() else _ENCODER.encode(event)


def query_fields(mode: QueryMode, *, salt: str = "") -> Callable[[str], Mapping[str, str]]:
    """How a query appears in the log, as a function from the query to log fields.

    A shopper's query can be personal data. ``hash`` (64 bits of keyed BLAKE2b) lets lines about
    one query be joined; common queries can be guessed from it unless a ``salt`` is kept secret.
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
