"""One connection: uvicorn's HTTP/1.1 protocol, with bounds on what a caller may take of the server.

uvicorn bounds neither the headers nor how long a request may take to arrive. Here a request has so
many bytes and so many seconds; what is refused before the application sees it is answered as a
problem, like any other error. Health checks find a place when all places are taken.
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
"""Connections over the limit that are read all the same, to let health checks through."""
_SPARE_READ_S = 1.0
_LINGER_S = 1.0
"""How long a refused caller has to read why, before the connection goes."""
KEEP_ALIVE_S = 75
"""Idle time of a connection: longer than that of common proxies, so that they close first."""
_CROWDED_KEEP_ALIVE_S = 5.0
"""The same while more than half of the places are taken."""
_CHUNKING = 8
"""Bytes on the wire for each byte of a body, at most: chunks of one byte take 6."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers may take.

    Attributes:
        connections: open at a time.
        head_bytes: request line and headers together.
        body_bytes: of a request; the application sees to it, here only the overhead is bounded.
        request_s: longest that one request may take to arrive, in seconds. Reading an answer may
            stall as long.
    """

    connections: int
    head_bytes: int
    body_bytes: int
    request_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those of the settings."""
        return cls(
            connections=settings.max_connections,
            head_bytes=settings.max_header_bytes,
            body_bytes=settings.max_body_bytes,
            request_s=settings.body_timeout_s,
        )

    @property
    def wire_bytes(self) -> int:
        """Bytes that one request may take on the wire, whatever they are."""
        return self.head_bytes + _CHUNKING * self.body_bytes


class HttpState(ServerState):
    """What all connections share.

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
        """Whether the process has been told to stop: every answer is its connection's last."""
        self.crowded: ASGIApp | None = None
        """Answers on connections over the limit; default: the application itself."""

    @property
    def registry(self) -> CollectorRegistry:
        """The server's own metrics."""
        return self.metrics.registry


class Connection(HttpToolsProtocol):
    """One connection of one caller; made by :class:`uvicorn.Server`."""

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
        """Why the request that is arriving will not arrive whole."""
        self._quiet_since = self.loop.time()
        self._request_s = server_state.limits.request_s
        self._last = False  # the next answer is the last on this connection
        self._deaf = False  # what arrives is dropped
        # Of the request that is arriving:
        self._between = True  # there is none
        self._begun = 0  # requests that began in the piece of data that is being read
        self._head_complete = False
        self._head_bytes = 0
        self._wire_bytes = 0
        self._reading: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def arriving(self) -> bool:
        """Whether a request has begun to arrive and is not whole."""
        return not self._between

    def idle_for(self) -> float | None:
        """Seconds since anything happened; ``None`` while a request is under way."""
        if self._answering() or self.pipeline or not self._between or has_input(self.transport):
            return None
        return self.loop.time() - self._quiet_since

    def last_answer(self) -> None:
        """Make the next answer the last, and say so in it."""
        self._last = True
        cycle = self._answering()
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def close(self) -> None:
        """Close once what was answered has been sent, for which there is a limit of time."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._request_s, self.transport.abort)

    def cut_off(self) -> None:
        """Answer that there will be no answer, as far as that is possible, and hang up."""
        cycle = self._answering()
        if cycle is not None:
            if not cycle.response_started and not self.pipeline:
                self._write(Stopping("the service had to stop first; ask again"))
            cycle.disconnected = True
            cycle.message_event.set()
        self.close()

    # What uvicorn's protocol calls, and is called by

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has connected."""
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
        """The connection is gone."""
        self._expect_nothing()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request, of several, or of none."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        unfinished, self._between, self._begun = not self._between, False, 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # nothing is offered: the request has been answered as it is
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
        if self._begun + unfinished <= 1:  # else it is not known how much of the data is its own
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
        self._between = False
        self._begun += 1
        self._head_complete = False
        self._head_bytes = self._wire_bytes = 0
        self.fault = None
        cast("dict[str, Any]", self.scope)[_KEY] = self

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which nobody reads."""
        self._count_head(len(name) + len(value) + 4)
        if not self._head_complete:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """All that is needed to start answering."""
        super().on_headers_complete()
        self._head_complete = True
        # What comes after a request to switch protocols may be of the other protocol.
        if self._last or self.state.stopping or self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        super().on_message_complete()
        self._between = True
        self._expect_nothing()

    def on_response_complete(self) -> None:
        """The last byte of an answer has been handed to the transport."""
        self._quiet_since = self.loop.time()
        crowded = 2 * len(self.connections) > self.state.limits.connections
        # uvicorn declares whole seconds, and hands them to the loop, which takes any number.
        seconds = _CROWDED_KEEP_ALIVE_S if crowded else KEEP_ALIVE_S
        self.timeout_keep_alive = cast("int", seconds)
        super().on_response_complete()
        if self.transport.is_closing():
            self.close()

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for too long."""
        # A busy loop runs timers before it reads: the next request may be there already.
        if not has_input(self.transport):
            self.close()

    def shutdown(self) -> None:
        """Finish what is under way."""
        self.last_answer()

    def pause_writing(self) -> None:
        """The caller does not read its answers as fast as it asks for them."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._request_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller has read on."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

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
        """The latest request, unless it has been answered."""
        cycle = cast(
            "RequestResponseCycle | None", self.cycle
        )  # declared as if there always is one
        return None if cycle is None or cycle.response_complete else cycle

    def _expect(self) -> None:
        """From now on a request has to arrive in time."""
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
            self.close()  # nothing was ever sent: nobody waits for an answer

    def _refuse(self, error: RequeryError) -> None:
        """Drop what arrives from now on, and say why if nothing has been said yet."""
        self._deaf = True
        self._expect_nothing()
        if self.transport.is_closing():
            return
        self.state.metrics.refused(error)
        cycle = self._answering()
        if cycle is not None:
            # An answer is being made: to this request, which is told why it will never be whole,
            # or to the one before, whose answer goes first and is the last.
            cycle.keep_alive = False
            if cycle.more_body:
                self.fault = error
                cycle.message_event.set()
            return
        if self._head_complete and not self._between:  # answered before it had arrived
            self.close()
            return
        self._write(error)
        # Closing at once would throw away what the caller has sent, and with it our answer.
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def _write(self, error: RequeryError) -> None:
        """Answer without the application."""
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
    """The connection that a request came on; ``None`` where there is no server (in tests)."""
    connection = scope.get(_KEY)
    return connection if isinstance(connection, Connection) else None


def whole(receive: Receive, connection: Connection) -> Receive:
    """``receive`` that raises why a body will not arrive whole, so that it is answered."""

    async def receive_whole() -> Message:
        message = await receive()
        if connection.fault is not None and message.get("more_body"):
            raise connection.fault
        return message

    return receive_whole


def too_many(state: HttpState) -> TooManyConnections:
    """The refusal of a connection over the limit, which is counted."""
    error = TooManyConnections(
        f"{state.limits.connections} connections are open, and no more are taken; try again"
    )
    state.metrics.refused(error)
    return error


def has_input(*channels: asyncio.BaseTransport | socket.socket) -> bool:
    """Whether any of them has something to read: data, a caller to accept, or an end."""
    poll = select.poll()
    for channel in channels:
        if not isinstance(channel, socket.socket):
            channel = channel.get_extra_info("socket")  # noqa: PLW2901 - what can be polled
        if channel is not None and channel.fileno() >= 0:
            poll.register(channel.fileno(), select.POLLIN)
    return bool(poll.poll(0))
