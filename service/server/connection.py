"""One connection: uvicorn's HTTP/1.1 protocol with limits on size, time and number.

uvicorn limits neither the headers nor the time in which a request must arrive. This class does, and
answers a request that it rejects as a problem, like any other error. Some connections over the
limit are kept for health checks.
"""

from __future__ import annotations

import asyncio
import select
import socket
from dataclasses import dataclass
from typing import Any, Literal, cast

import httptools
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from service.api.problems import problem
from service.config.settings import Settings
from service.errors import (
    HeadersTooLarge,
    MalformedRequest,
    PayloadTooLarge,
    RequeryError,
    RequestTimeout,
    Stopping,
    TooManyConnections,
)
from service.server.metrics import HttpMetrics
from service.telemetry.request_context import make_context

_KEY = "requery.connection"
_SPARE = 64
"""Connections over the limit that are read for health checks."""
_SPARE_READ_S = 1.0
_LINGER_S = 1.0
"""Time for a rejected client to read the answer before the connection is aborted."""
KEEP_ALIVE_S = 75
"""Idle time of a connection: longer than in common proxies, so that they close first."""
_CROWDED_KEEP_ALIVE_S = 5.0
"""The same while more than half of all connections are open."""
_CHUNKING = 8
"""Most bytes on the wire for each byte of a body: chunks of one byte take 6."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on connections and requests.

    Attributes:
        connections: open at a time.
        head_bytes: of the request line and the headers.
        body_bytes: of the body; the application enforces it, the server bounds the overhead.
        request_s: seconds in which a request must arrive, and longest stall of a response.
    """

    connections: int
    head_bytes: int
    body_bytes: int
    request_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits of the settings."""
        return cls(
            connections=settings.max_connections,
            head_bytes=settings.max_header_bytes,
            body_bytes=settings.max_body_bytes,
            request_s=settings.body_timeout_s,
        )

    @property
    def wire_bytes(self) -> int:
        """Most bytes of one request on the wire."""
        return self.head_bytes + _CHUNKING * self.body_bytes


class HttpState(ServerState):
    """State that all connections share.

    Args:
        limits: see :class:`Limits`.
        metrics: see :class:`HttpMetrics`.
    """

    def __init__(self, limits: Limits, metrics: HttpMetrics | None = None) -> None:
        super().__init__()
        self.limits = limits
        self.metrics = metrics or HttpMetrics()
        self.metrics.watch(lambda: len(self.connections))
        self.stopping = False
        """Whether the server is stopping: every response closes its connection."""
        self.crowded: ASGIApp | None = None
        """Answers on connections over the limit; default: the application."""

    @property
    def registry(self) -> CollectorRegistry:
        """The server's own metrics."""
        return self.metrics.registry


class Connection(HttpToolsProtocol):
    """One client connection, created by :class:`uvicorn.Server`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(server_state, HttpState)  # noqa: S101 - for the type checker
        self.state = server_state
        self.fault: RequeryError | None = None
        """Why the present request will not arrive completely."""
        self._quiet_since = self.loop.time()
        self._request_s = server_state.limits.request_s
        self._last = False  # the next response closes the connection
        self._deaf = False  # input is dropped
        # State of the present request:
        self._between = True  # no request is arriving
        self._begun = 0  # requests that began in the present data
        self._head_complete = False
        self._rereading = False  # the head is parsed again, without an upgrade
        self._head_bytes = 0
        self._wire_bytes = 0
        self._reading: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def arriving(self) -> bool:
        """Whether a request is arriving and incomplete."""
        return not self._between

    def idle_for(self) -> float | None:
        """Seconds since the last activity; ``None`` while a request is in flight."""
        if self._answering() or self.pipeline or not self._between or has_input(self.transport):
            return None
        return self.loop.time() - self._quiet_since

    def last_answer(self) -> None:
        """Let the next response close the connection, with ``Connection: close``."""
        self._last = True
        cycle = self._answering()
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def close(self) -> None:
        """Close after the response is sent, or after the time limit."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._request_s, self.transport.abort)

    def cut_off(self) -> None:
        """Answer 503 if no response has started, and close."""
        cycle = self._answering()
        if cycle is not None:
            if not cycle.response_started and not self.pipeline:
                self._write(Stopping("the service had to stop first; ask again"))
            cycle.disconnected = True
            cycle.message_event.set()
        self.close()

    # Overridden methods of uvicorn's protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        limits = self.state.limits
        over = len(self.connections) - limits.connections
        if over > _SPARE:
            self._deaf = True
            self._write(too_many(self.state))
            transport.close()
            return
        if over > 0:
            self._last = True
            self._request_s = min(self._request_s, _SPARE_READ_S)
            if self.state.crowded is not None:
                self.app = cast("Any", self.state.crowded)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._expect_nothing()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data, which may be part of a request or several requests."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        unfinished, self._between, self._begun = not self._between, False, 0
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause
                if isinstance(cause, RequeryError)
                else MalformedRequest("send one HTTP/1.1 request at a time, as RFC 9112 says")
            )
            return
        if self._between:
            return
        if self._begun + unfinished <= 1:  # otherwise the request's share of the data is unknown
            self._wire_bytes += len(data)
        if not self._head_complete and self._wire_bytes > self.state.limits.head_bytes:
            self._refuse(self._long_head())
        elif self._wire_bytes > self.state.limits.wire_bytes:
            self._refuse(PayloadTooLarge("the body takes too many bytes to send; send less"))
        elif self._reading is None:
            self._expect()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[_KEY] = self
        self._between = False
        if self._rereading:
            return
        self._begun += 1
        self._head_complete = False
        self._head_bytes = self._wire_bytes = 0
        self.fault = None

    def on_url(self, url: bytes) -> None:
        """Part of the request's target."""
        if not self._rereading:
            self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is ignored."""
        if not self._rereading:
            self._count_head(len(name) + len(value) + 4)
        if not self._head_complete:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are complete."""
        if self._offers_upgrade():
            return
        super().on_headers_complete()
        self._head_complete = True
        if self._last or self.state.stopping or self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self._offers_upgrade():
            return
        super().on_message_complete()
        self._between = True
        self._expect_nothing()

    def on_response_complete(self) -> None:
        """The transport has the last byte of a response."""
        self._quiet_since = self.loop.time()
        crowded = 2 * len(self.connections) > self.state.limits.connections
        # uvicorn declares an int, but the loop accepts fractions.
        seconds = _CROWDED_KEEP_ALIVE_S if crowded else KEEP_ALIVE_S
        self.timeout_keep_alive = cast("int", seconds)
        super().on_response_complete()
        if self.transport.is_closing():
            self.close()

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for too long."""
        # A busy loop runs timers before it reads, so the next request may be waiting.
        if not has_input(self.transport):
            self.close()

    def shutdown(self) -> None:
        """Finish the request in flight."""
        self.last_answer()

    def pause_writing(self) -> None:
        """The client reads more slowly than it sends requests."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._request_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _parse(self, data: bytes) -> None:
        """Feed the parser.

        The parser stops after the head of a request that offers an upgrade, and skips its body.
        RFC 9110, 7.8 lets a server ignore the offer, so the parser reads the head again without it.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._offers_upgrade():
                    return  # after CONNECT: its answer closes the connection
                data = data[upgrade.args[0] :]
                self._reread_head()
            else:
                return

    def _offers_upgrade(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _reread_head(self) -> None:
        """Parse the head of the present request without its ``Upgrade`` headers."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        # After "Connection: close" a parser takes no other head.
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._rereading = True
        try:
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        finally:
            self._rereading = False

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.state.limits.head_bytes:
            raise self._long_head()

    def _long_head(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            "the request line and the headers may have at most "
            f"{self.state.limits.head_bytes} bytes together; send fewer or shorter headers"
        )

    def _answering(self) -> RequestResponseCycle | None:
        """The latest request, unless its response is complete."""
        cycle = cast(
            "RequestResponseCycle | None", self.cycle
        )  # declared as if there always is one
        return None if cycle is None or cycle.response_complete else cycle

    def _expect(self) -> None:
        """Start the timer for the next request."""
        self._reading = self.loop.call_later(self._request_s, self._too_slow)

    def _expect_nothing(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _too_slow(self) -> None:
        self._reading = None
        if not self._between:
            self._refuse(
                RequestTimeout(
                    f"the request was not complete within {self._request_s:g} s; send it again"
                )
            )
        elif not has_input(self.transport):
            self.close()  # the client sent nothing and expects no answer

    def _refuse(self, error: RequeryError) -> None:
        """Drop further input, and answer with ``error`` if no response has started."""
        self._deaf = True
        self._expect_nothing()
        if self.transport.is_closing():
            return
        self.state.metrics.refused(error)
        cycle = self._answering()
        if cycle is not None:
            # A response is in progress. If it is to this request, reading its body raises the
            # error; if it is to the previous request, it goes first and closes the connection.
            cycle.keep_alive = False
            if cycle.more_body:
                self.fault = error
                cycle.message_event.set()
            return
        if self._head_complete and not self._between:  # answered before it was complete
            self.close()
            return
        self._write(error)
        # Closing with unread input would reset the connection and lose the answer.
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def _write(self, error: RequeryError) -> None:
        """Write an error response without the application."""
        response = problem(error, make_context(()).request_id)
        lines = [STATUS_LINE[response.status_code]]
        headers = [*self.state.default_headers, *response.raw_headers]
        lines += [
            name + b": " + value + b"\r\n" for name, value in headers if name != b"connection"
        ]
        lines += [b"connection: close\r\n\r\n", bytes(response.body)]
        self.transport.write(b"".join(lines))


def protocol(name: Literal["bounded", "uvicorn"]) -> type[HttpToolsProtocol]:
    """The class of connections for ``REQUERY_HTTP_PROTOCOL``."""
    return Connection if name == "bounded" else HttpToolsProtocol


def connection_of(scope: Scope) -> Connection | None:
    """The connection of a request; ``None`` without this server."""
    connection = scope.get(_KEY)
    return connection if isinstance(connection, Connection) else None


def complete_or_raise(receive: Receive, connection: Connection) -> Receive:
    """``receive`` that raises the reason why a body stays incomplete."""

    async def checked() -> Message:
        message = await receive()
        if connection.fault is not None and message.get("more_body"):
            raise connection.fault
        return message

    return checked


def too_many(state: HttpState) -> TooManyConnections:
    """The error for a connection over the limit; counts it."""
    error = TooManyConnections(
        f"{state.limits.connections} connections are open, and no more are taken; try again"
    )
    state.metrics.refused(error)
    return error


def has_input(*channels: asyncio.BaseTransport | socket.socket) -> bool:
    """Whether any of them has input: data, a connection to accept, or an end."""
    poll = select.poll()
    for channel in channels:
        if not isinstance(channel, socket.socket):
            channel = channel.get_extra_info("socket")  # noqa: PLW2901 - what can be polled
        if channel is not None and channel.fileno() >= 0:
            poll.register(channel.fileno(), select.POLLIN)
    return bool(poll.poll(0))
