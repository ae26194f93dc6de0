"""uvicorn's server with a graceful shutdown under load.

After SIGTERM it accepts requests for a while (``/readyz`` answers 503, each response closes its
connection), then refuses new connections, finishes requests in flight, and ends. A client either
gets an answer or cannot connect.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import struct
import time
from collections.abc import Sequence
from types import FrameType

import structlog
import uvicorn

from service.api.operations import SERVER_STATE
from service.server.connection import Connection, HttpState, has_input
from service.telemetry.logging import batched_writes, flush

_log = structlog.get_logger(component="server")

_SAME_S = 0.5
"""Signals within this time count as one, because process managers send some twice."""
_HANDSHAKES_S = 0.1
"""How long to accept clients whose handshake was in progress."""
_QUIET_S = 1.0
"""Idle time after which a connection is not about to be used."""
_TICK_S = 0.02
_HANG_UP_S = 1.0
"""Time for requests to notice that they were cut off."""

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which the socket module does not name
_DROP_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags of the TCP header
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # only SYN (a new client):
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # otherwise: accept
    )
)


class Server(uvicorn.Server):
    """Serves one application on one event loop.

    Args:
        config: of uvicorn.
        state: what the connections share.
        delay_s: seconds of accepting requests after SIGTERM; none after SIGINT.
        grace_s: longest time for requests in flight after that, in seconds.
    """

    def __init__(
        self, config: uvicorn.Config, state: HttpState, *, delay_s: float, grace_s: float
    ) -> None:
        super().__init__(config)
        self.server_state: HttpState = state
        self.cutting_off = False
        """Whether the grace period is over and the remaining requests are cancelled."""
        self._delay_s = delay_s
        self._grace_s = grace_s
        self._signalled_at: float | None = None
        self._taking_until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        with batched_writes():
            await super()._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept requests."""
        self._loop = asyncio.get_running_loop()
        self.lifespan.state[SERVER_STATE] = self.server_state
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Stop gracefully at the first signal, and at once at the second."""
        now = time.monotonic()
        if self._signalled_at is not None:
            if now - self._signalled_at >= _SAME_S:
                flush()
                # The engine cores notice that their parent is gone and end.
                os.write(2, b"requery: told to stop a second time: stopped at once\n")
                os._exit(128 + sig)
            return
        self._signalled_at = now
        delay_s = self._delay_s if sig == signal.SIGTERM else 0.0
        self._taking_until = now + delay_s
        self.server_state.stopping = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, signal.Signals(sig).name, delay_s)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to refuse new connections."""
        return await super().on_tick(counter) and time.monotonic() >= self._taking_until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, finish requests in flight, stop the application."""
        self.server_state.stopping = True
        self._last_answers()
        await self._close_listeners(sockets or [])
        for connection in self.server_state.connections - set(self._connections):
            connection.shutdown()  # uvicorn's own protocol: see REQUERY_HTTP_PROTOCOL
        await self._finish()
        await self.lifespan.shutdown()
        _log.info("stopped")

    def _stop(self, name: str, delay_s: float) -> None:
        _log.info("stopping", signal=name, delay_s=delay_s, grace_s=self._grace_s)
        self._last_answers()

    def _last_answers(self) -> None:
        for connection in self._connections:
            connection.last_answer()

    async def _close_listeners(self, listeners: Sequence[socket.socket]) -> None:
        """Refuse new connections after accepting those that the kernel has completed.

        Closing at once would reset them, and some hold a complete request.
        """
        turned_away = [turn_away(listener) for listener in listeners]
        if all(turned_away):
            end = time.monotonic() + self._grace_s
            await asyncio.sleep(min(_HANDSHAKES_S, self._grace_s))
            while has_input(*listeners) and time.monotonic() < end:  # noqa: ASYNC110 - has no event
                await asyncio.sleep(_TICK_S)
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()

    async def _finish(self) -> None:
        """Wait for requests in flight, and for clients that have just connected."""
        state = self.server_state
        end = time.monotonic() + self._grace_s
        while (state.connections or state.tasks) and time.monotonic() < end:
            for connection in self._connections:
                idle_s = connection.idle_for()
                if idle_s is not None and idle_s >= _QUIET_S:
                    connection.close()
            await asyncio.sleep(_TICK_S)
        if not state.connections and not state.tasks:
            return
        _log.warning(
            "grace_period_over", connections=len(state.connections), requests=len(state.tasks)
        )
        self.cutting_off = True
        for connection in self._connections:
            connection.cut_off()
        if state.tasks:
            # Most notice that their client is gone.
            await asyncio.wait(tuple(state.tasks), timeout=_HANG_UP_S)
        for task in tuple(state.tasks):
            task.cancel()

    @property
    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]


def turn_away(listener: socket.socket) -> bool:
    """Refuse new clients while handshakes in progress can complete.

    The first packet of a new client is dropped. When the client repeats it, the listener is closed
    and refuses it.

    Returns:
        Whether the filter is set. Some sandboxes forbid it; clients that connect while the
        listener closes may then be lost.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET,
            _ATTACH_FILTER,
            struct.pack("HL", len(_DROP_SYN) // 8, ctypes.addressof(program)),
        )
    except OSError as error:
        _log.warning("no_socket_filter", reason=str(error))
        return False
    return True
