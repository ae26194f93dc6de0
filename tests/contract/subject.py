"""The application under test: in process, on scripted engines, with admin rights, and watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson
import structlog
from fastapi import FastAPI
from structlog.processors import format_exc_info
from structlog.testing import capture_logs
from structlog.typing import EventDict

from service.versions.version import ModelVersion
from tests.contract.wire import JSON, Answer, Sent, exchange
from tests.support.engine import ScriptedEngine
from tests.support.service import serving
from tests.support.versions import make_manifest

_T = TypeVar("_T")

DEFAULT, SECOND = "test-1", "second-1"
"""Names of the versions."""
PINNED = "seeded-pin"
"""Id of an override that is there after each :meth:`Subject.reset`."""

NAMES: dict[str, Any] = {
    "name": SECOND,
    "default": DEFAULT,
    "version": SECOND,
    "model_version": DEFAULT,
    "weights": {DEFAULT: 1},
    "salt": "an experiment",
    "id": PINNED,
    "POST /overrides id": "fresh",
    "rewrites": ["metal stake", "iron stake"],
    "If-Match": "*",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
"""Valid values by the names of fields and parameters, where the document cannot know them."""

# What a model might write: all of it has to be fit for an answer.
_CANDIDATES = (
    ("steel stake", 0.98), ("metal stake", 0.91), ("<|im_end|> stake \x00\r\n", 0.9),
    ("🔨 stake \u202e", 0.8), ("stake \ufffd", 0.7), ("", 0.6), ("stake 3/4 in x 12", 0.5),
    ("x" * 300, 0.4), ("stake", None),
)  # fmt: skip

_ORDINARY_WARNINGS = {"drain_cut_off"}
"""Events of level warning that a caller may bring about."""


class Subject:
    """Sends requests, one after the other; made by :func:`running`.

    Args:
        app: the application, started.
        runner: turns its event loop; between requests everything stands still.
        events: what it logs.
        loop_faults: what the event loop complains of.
        reset_with: headers of what :meth:`reset` sends.
    """

    def __init__(
        self,
        app: FastAPI,
        runner: asyncio.Runner,
        events: list[EventDict],
        loop_faults: list[str],
        *,
        reset_with: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.document: dict[str, Any] = app.openapi()
        self.requests = 0
        self._app = app
        self._runner = runner
        self._events = events
        self._loop_faults = loop_faults
        self._reset_with = reset_with

    def send(self, sent: Sent) -> Answer:
        """The answer to a request.

        Raises:
            TimeoutError: there is none.
            Exception: what came out of the application.
        """
        self.requests += 1
        return self._runner.run(exchange(self._app, sent))

    def reset(self) -> None:
        """Put back whatever callers can change, so that later requests find something to do."""
        self._runner.run(self._reset())

    def faults(self) -> list[str]:
        """What has been logged since the last call that no caller may bring about."""
        found = [_told(event) for event in self._events if _is_fault(event)] + self._loop_faults
        self._events.clear()
        self._loop_faults.clear()
        return found

    async def _reset(self) -> None:
        for method, path, body in (
            ("DELETE", "/routing/kill", None),
            ("POST", f"/versions/{DEFAULT}/load?wait=true", None),
            ("POST", f"/versions/{SECOND}/load?wait=true", None),
            ("PUT", "/routing", {"default": DEFAULT, "weights": {}, "salt": "requery"}),
            ("PUT", "/overrides", {"overrides": _SEEDS}),
        ):
            headers = ((b"if-match", b"*"), JSON, *self._reset_with)
            sent = Sent(method, path.encode(), headers, b"" if body is None else orjson.dumps(body))
            answer = await exchange(self._app, sent)
            if answer.status != 200:
                raise AssertionError(f"{sent}: {answer.status} {answer.body[:500]!r}")


def bearer(key: str) -> tuple[bytes, bytes]:
    """The header that carries a key."""
    return b"authorization", b"Bearer " + key.encode()


_SEEDS = [
    {"kind": "pin", "id": PINNED, "query": "pinned", "rewrites": ["a", "b"], "reason": "seed"},
    {"kind": "block_query", "query": "blocked", "reason": "seed"},
    {"kind": "block_term", "term": "iron", "reason": "seed"},
]


@contextmanager
def running(*, admin_key: str | None = None, **options: Any) -> Iterator[Subject]:
    """An application that is ready, until the block ends.

    Args:
        admin_key: key for everything that changes state; without it this machine may do that.
        options: settings of the service.
    """
    reset_with: tuple[tuple[bytes, bytes], ...] = ()
    if admin_key is not None:
        options["admin_key"] = admin_key
        reset_with = (bearer(admin_key),)
    loop_faults: list[str] = []
    handler = _Collector(loop_faults)
    root = logging.getLogger()
    root.addHandler(handler)
    with (
        capture_logs([structlog.contextvars.merge_contextvars, format_exc_info]) as events,
        asyncio.Runner() as runner,
    ):
        stop = asyncio.Event()
        started: asyncio.Future[FastAPI] = runner.get_loop().create_future()

        async def host() -> None:
            # One task from beginning to end, as a server has it.
            try:
                async with serving() as serve:
                    service = await serve(
                        ScriptedEngine(default=_CANDIDATES),
                        more_versions=(ModelVersion(make_manifest(SECOND)),),
                        **options,
                    )
                    started.set_result(service.app)
                    await stop.wait()
            except BaseException as error:
                if not started.done():
                    started.set_exception(error)
                raise

        def complain(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            loop_faults.append(f"{context.get('message')}: {context.get('exception')!r}")

        runner.get_loop().set_exception_handler(complain)
        hosting = runner.get_loop().create_task(host())
        try:
            app = runner.run(_of(started))
            subject = Subject(app, runner, events, loop_faults, reset_with=reset_with)
            subject.reset()
            yield subject
        finally:
            stop.set()
            runner.run(_of(hosting))
            root.removeHandler(handler)


async def _of(future: asyncio.Future[_T]) -> _T:
    return await future


class _Collector(logging.Handler):
    """Keeps what libraries complain of."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.append(f"{record.name}: {record.getMessage()}")


def _is_fault(event: EventDict) -> bool:
    level = event["log_level"]
    return level in ("error", "critical") or (
        level == "warning" and event["event"] not in _ORDINARY_WARNINGS
    )


def _told(event: EventDict) -> str:
    fields = {k: v for k, v in event.items() if k not in ("event", "log_level", "exception")}
    return f"logged {event['event']} {fields!r}\n{event.get('exception', '')}"
