"""The server: uvicorn's, with an orderly end under load.

Told to stop, it goes on answering for a while (``/readyz`` says that it stops, and each answer is
the last on its connection), then turns new callers away, finishes what it has, and ends. A caller
either gets an answer or could not connect: nobody is cut off between the two.
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
"""Signals this close to each other are one: process managers send some of them twice."""
_HANDSHAKES_S = 0.1
"""Callers whose handshake was under way when new ones were turned away are accepted until then."""
_QUIET_S = 1.0
"""A connection on which nothing has happened for so long is not about to be used."""
_TICK_S = 0.02
_HANG_UP_S = 1.0
"""What was cut off may take so long to notice."""

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which the socket module does not name
_DROP_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
        (0x54, 0, 0, 0x12),  # of which SYN and ACK count
        (0x15, 0, 1, 0x02),  # only SYN: somebody new
        (0x06, 0, 0, 0),  # is not heard;
        (0x06, 0, 0, 0xFFFFFFFF),  # everybody else is
    )
)


class Server(uvicorn.Server):
    """Serves one application on one event loop.

    Args:
        config: of uvicorn; its application, and :class:`service.server.connection.Connection` as
        ``http``. state: what the connections share.
        delay_s: how long requests are taken after SIGTERM, in seconds. SIGINT does without.
        grace_s: longest that requests in flight may take after that, in seconds.
    """

    def __init__(
        self, config: uvicorn.Config, state: HttpState, *, delay_s: float, grace_s: float
    ) -> None:
        super().__init__(config)
        self.server_state: HttpState = state
        self.cutting_off = False
        """Whether the grace period is over: what is left is cancelled, and nobody is waiting."""
        self._delay_s = delay_s
        self._grace_s = grace_s
        self._told_at: float | None = None
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
        """Stop in order at the first signal, and at once at the second."""
        now = time.monotonic()
        if self._told_at is not None:
            if now - self._told_at >= _SAME_S:
                flush()
                # Nothing is in order any more; the engine cores notice and end by themselves.
                os.write(2, b"requery: told to stop a second time: stopped at once\n")
                os._exit(128 + sig)
            return
        self._told_at = now
        delay_s = self._delay_s if sig == signal.SIGTERM else 0.0
        self._taking_until = now + delay_s
        self.server_state.stopping = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, signal.Signals(sig).name, delay_s)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to turn new callers away."""
        return await super().on_tick(counter) and time.monotonic() >= self._taking_until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Turn new callers away, finish what is under way, stop the application."""
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
        """Refuse whoever is new, and accept whoever has connected by now.

        Closing right away would reset connections that the kernel has accepted for us, some with
        a whole request in them.
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
        """Wait for answers under way, and for callers that have connected and not yet asked."""
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
            # Most notice that their caller is gone.
            await asyncio.wait(tuple(state.tasks), timeout=_HANG_UP_S)
        for task in tuple(state.tasks):
            task.cancel()

    @property
    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]


def turn_away(listener: socket.socket) -> bool:
    """Let nobody new connect, while callers in the middle of connecting still can.

    New callers get no reply to their first packet; by the time they repeat it the listener is
    closed, and they are refused.

    Returns:
        Whether it was done: some sandboxes do not allow it, and callers that connect in the very
        moment in which the listener is closed may then be lost.
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
