"""Structured logs: one JSON object per line on standard output, whatever a shopper types.

Lines are pure ASCII (everything else is escaped), so no character of a query, not even U+2028 or
NEL, can break a line for any reader. Standard-library loggers (uvicorn) go the same way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_ENCODER = json.JSONEncoder(default=repr, separators=(",", ":"))

QueryMode = Literal["hash", "plain", "off"]

_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
)


class _Lines(structlog.PrintLogger):
    """Writes lines; one that cannot be written is lost, and nothing else is.

    A full disk under the log, or a reader who has gone, must not fail the request that is told of.
    """

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class _Handler(logging.StreamHandler[TextIO]):
    """The same for the lines of libraries."""

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
