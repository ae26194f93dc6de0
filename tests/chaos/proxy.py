"""A TCP proxy that stands in for a bad network, between a client and any server of the loopback.

    async with FaultProxy(server.port) as proxy:
        client = connect(f"redis://127.0.0.1:{proxy.port}")
        await proxy.switch(Reset(after_bytes=10))

What is wrong is one :data:`Fault`, switched at any time, for connections that are open as well.
*Requests* are the bytes that go to the server, *answers* those that come from it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeAlias

_HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_QUEUED_CHUNKS = 64
"""Read ahead of what has been delivered; beyond it the sender has to wait, as with real TCP."""
_PIECES_PER_S = 20
"""A throttled stream comes in so many pieces a second, not in one lump at the end."""
_BACKLOG = 512
_LAST_TURNS = 3
"""Of the event loop, in which sockets that were closed really go."""

Direction: TypeAlias = Literal["requests", "answers"]


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody listens; open connections are reset."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Connections are reset once this many bytes of answers have come through; 0: at once."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Delay:
    """Answers come so many seconds late, and up to ``jitter_s`` more, in their order."""

    seconds: float
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Throttle:
    """Each connection carries so many bytes a second in each direction."""

    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class BlackHole:
    """Connections are accepted and read, and nothing goes any further."""


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One direction is closed for good; what is sent the other way still arrives."""

    closed: Direction = "answers"


@dataclass(frozen=True, slots=True)
class Corrupt:
    """One byte in every ``every`` of the answers, on average, comes with a flipped bit."""

    every: int = 16


Fault: TypeAlias = Pass | Refuse | Reset | Delay | Throttle | BlackHole | HalfOpen | Corrupt


@dataclass(slots=True)
class Stats:
    """What has been seen so far.

    Attributes:
        connections: accepted.
        resets: connections that were reset from here, or whose other side was.
        requests: bytes read from clients.
        answers: bytes read from the server.
        delivered: bytes of answers that were passed on.
    """

    connections: int = 0
    resets: int = 0
    requests: int = 0
    answers: int = 0
    delivered: int = 0


class FaultProxy:
    """Listens on a free port of the loopback and passes on to another one.

    Args:
        port: of the server, which need not be there yet.
        seed: of what is random: jitter and flipped bits.
    """

    def __init__(self, port: int, *, seed: int = 0) -> None:
        self.stats = Stats()
        self.random = random.Random(seed)
        self.fault: Fault = Pass()
        self.switched = asyncio.Event()
        """Set once ``fault`` is no longer the one that it was when this was looked at."""
        self._target = port
        # Bound for the proxy's whole life, so that nobody else takes the port while it refuses.
        self._holder = _bound(0)
        self.port = int(self._holder.getsockname()[1])
        """Where clients connect."""
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._deafen()
        for connection in list(self._connections.values()):
            connection.reset()
        await self._settle()
        self._holder.close()

    async def switch(self, fault: Fault) -> None:
        """Let ``fault`` be what is wrong from now on, with connections that are open too."""
        self.fault = fault
        switched, self.switched = self.switched, asyncio.Event()
        switched.set()
        if isinstance(fault, Refuse):
            await self._deafen()
        else:
            await self._listen()
        for connection in list(self._connections.values()):
            connection.meet(fault)

    async def _listen(self) -> None:
        if self._listener is None:
            listener = _bound(self.port)
            self._listener = await asyncio.start_server(
                self._accepted, sock=listener, backlog=_BACKLOG
            )

    async def _deafen(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            # The socket is closed in the next turn of the event loop.
            await asyncio.sleep(0)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats.connections += 1
        connection = _Connection(self, reader, writer)
        task = connection.task = asyncio.create_task(connection.run(self._target))
        self._connections[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which may have been cancelled before it began.
        self.stats.resets += not self._connections.pop(task).end()

    async def _settle(self) -> None:
        while self._connections:
            await asyncio.gather(*self._connections, return_exceptions=True)
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(0)


class _Connection:
    """One client, and its own connection to the server."""

    def __init__(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._proxy = proxy
        self._client = (reader, writer)
        self._sinks: dict[Direction, asyncio.StreamWriter] = {"answers": writer}
        self._in_order = False
        self._lost = False
        """Whether bytes were swallowed, so that what follows would be taken for something else."""
        self._let_through = 0
        """Bytes of answers delivered since the last switch."""

    def reset(self) -> None:
        """Break it off; both sides get a reset."""
        if self.task is not None:
            self.task.cancel()

    def meet(self, fault: Fault) -> None:
        """Take note that ``fault`` holds from now on."""
        self._let_through = 0
        if self._lost or fault == Reset() or isinstance(fault, Refuse):
            self.reset()
        elif isinstance(fault, HalfOpen):
            self._close_half(fault.closed)

    async def run(self, target: int) -> None:
        """Carry bytes both ways until both sides have ended, or it is broken off."""
        try:
            fault = self._proxy.fault
            if fault == Reset():
                return
            if isinstance(fault, BlackHole):
                await self._swallow()
                return
            reader, writer = await asyncio.open_connection(_HOST, target)
            self._sinks["requests"] = writer
            if isinstance(self._proxy.fault, HalfOpen):
                self.meet(self._proxy.fault)
            async with asyncio.TaskGroup() as group:
                self._carry(group, self._client[0], "requests")
                self._carry(group, reader, "answers")
            self._in_order = True
        except* (OSError, _BrokenOff):
            pass

    def end(self) -> bool:
        """Close both sides; whether that was in order, and no reset."""
        for sink in self._sinks.values():
            _end(sink, in_order=self._in_order)
        return self._in_order

    def _carry(
        self, group: asyncio.TaskGroup, source: asyncio.StreamReader, direction: Direction
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
        group.create_task(self._read(source, queue, direction))
        group.create_task(self._write(queue, direction))

    async def _read(
        self,
        source: asyncio.StreamReader,
        queue: asyncio.Queue[tuple[float, bytes]],
        direction: Direction,
    ) -> None:
        now = asyncio.get_running_loop().time
        while chunk := await source.read(_CHUNK):
            self._count(direction, len(chunk))
            await queue.put((now(), chunk))
        await queue.put((now(), b""))

    async def _write(self, queue: asyncio.Queue[tuple[float, bytes]], direction: Direction) -> None:
        sink = self._sinks[direction]
        while True:
            arrived, chunk = await queue.get()
            if not chunk:
                with suppress(OSError):
                    sink.write_eof()
                return
            lateness = self._proxy.random.random()
            while chunk:
                chunk = await self._deliver(sink, chunk, direction, arrived, lateness)

    async def _deliver(
        self,
        sink: asyncio.StreamWriter,
        chunk: bytes,
        direction: Direction,
        arrived: float,
        lateness: float,
    ) -> bytes:
        """Do with ``chunk`` as the fault wants; what is left of it, to be asked for again.

        Args:
            sink: where it goes.
            chunk: bytes that were read.
            direction: in which they go.
            arrived: when they were read.
            lateness: share in [0, 1) of a delay's jitter.
        """
        fault = self._proxy.fault
        if isinstance(fault, BlackHole) or fault == HalfOpen(direction):
            self._lost = True
            return b""
        piece = self._piece(fault, chunk, direction)
        if await self._wait(_hold_s(fault, piece, direction, arrived, lateness)):
            return chunk
        wire = piece
        if isinstance(fault, Corrupt) and direction == "answers":
            wire = self._flipped(piece, fault.every)
        sink.write(wire)
        await sink.drain()
        if direction == "answers":
            self._let_through += len(piece)
            self._proxy.stats.delivered += len(piece)
            if isinstance(fault, Reset) and self._let_through >= fault.after_bytes:
                raise _BrokenOff
        return chunk[len(piece) :]

    def _piece(self, fault: Fault, chunk: bytes, direction: Direction) -> bytes:
        """The part of ``chunk`` that may go in one write."""
        if isinstance(fault, Throttle):
            return chunk[: max(1, int(fault.bytes_per_s / _PIECES_PER_S))]
        if isinstance(fault, Reset) and direction == "answers":
            return chunk[: fault.after_bytes - self._let_through]
        return chunk

    async def _wait(self, seconds: float) -> bool:
        """Wait; true, and at once, if the fault is switched meanwhile."""
        if seconds <= 0:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._proxy.switched.wait()
                return True
        return False

    async def _swallow(self) -> None:
        self._lost = True
        while chunk := await self._client[0].read(_CHUNK):
            self._count("requests", len(chunk))

    def _close_half(self, direction: Direction) -> None:
        self._lost = True
        sink = self._sinks.get(direction)
        if sink is not None and sink.can_write_eof():
            with suppress(OSError):
                sink.write_eof()

    def _flipped(self, chunk: bytes, every: int) -> bytes:
        draw = self._proxy.random
        return bytes(
            byte ^ (1 << draw.randrange(8)) if draw.randrange(every) == 0 else byte
            for byte in chunk
        )

    def _count(self, direction: Direction, n: int) -> None:
        if direction == "requests":
            self._proxy.stats.requests += n
        else:
            self._proxy.stats.answers += n


class _BrokenOff(Exception):
    """The connection is to be reset now."""


def _bound(port: int) -> socket.socket:
    """A socket bound to ``port`` that does not listen yet; several may be, while none listens."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((_HOST, port))
    return bound


def _hold_s(
    fault: Fault, piece: bytes, direction: Direction, arrived: float, lateness: float
) -> float:
    """How long ``piece`` is kept back from now on, in seconds."""
    if isinstance(fault, Throttle):
        return len(piece) / fault.bytes_per_s
    if isinstance(fault, Delay) and direction == "answers":
        due = arrived + fault.seconds + lateness * fault.jitter_s
        return due - asyncio.get_running_loop().time()
    return 0.0


def _end(sink: asyncio.StreamWriter, *, in_order: bool) -> None:
    if in_order:
        sink.close()
        return
    with suppress(OSError):
        # Closing then sends a reset instead of waiting for what was sent to arrive.
        end: socket.socket = sink.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sink.transport.abort()
