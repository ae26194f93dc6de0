"""Processes that the benchmark starts: on which cores, how much they compute, and their end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtests.bench.peer import PeerFailed
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from loadtests.processes import Process, descendants
from loadtests.target import until
from service.engine.cpu_time import cpu_seconds

START_S = 900.0
"""Longest that a start may take, on a busy machine too."""
_STOP_S = 20.0


class Child:
    """A process of our own; a context manager that ends it, and what it has started.

    Args:
        command: its command line.
        log: file for all that it prints.
        environment: added to ours; ``None`` takes a variable away.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self._command = list(command)
        self._log = log
        merged = {**os.environ, **(environment or {})}
        self._environment = {name: v for name, v in merged.items() if v is not None}
        self._started: subprocess.Popen[bytes] | None = None
        self._seen: set[Process] = set()

    @property
    def pid(self) -> int:
        """Of the process itself."""
        if self._started is None:
            raise PeerFailed(f"{self._command[0]} has not been started")
        return self._started.pid

    def start(self) -> None:
        """Start it; does not wait for anything."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._started = subprocess.Popen(  # noqa: S603 - our own programs
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def until(self, holds: Callable[[], Awaitable[bool]], patience_s: float) -> None:
        """Wait until ``holds()``.

        Raises:
            PeerFailed: it ended first, or it took too long; with the end of its log.
        """

        async def holds_or_ended() -> bool:
            self._seen.update(descendants(self.pid))
            return self._ended or await holds()

        if not await until(holds_or_ended, patience_s) or self._ended:
            raise PeerFailed(f"{' '.join(self._command[:4])}... did not get ready: {self.tail()}")

    async def until_answers(self, url: str, path: str, patience_s: float = START_S) -> None:
        """Wait until a ``GET`` is answered with 200.

        Raises:
            PeerFailed: it ended first, or it took too long.
        """
        async with HttpTransport(url) as transport:

            async def answers() -> bool:
                try:
                    code, _ = await transport.get(path)
                except NoReply:
                    return False
                return code == 200

            await self.until(answers, patience_s)

    def tail(self, characters: int = 600) -> str:
        """The end of what it has printed."""
        return self._log.read_text(errors="replace").strip()[-characters:]

    async def close(self) -> None:
        """End it and all that it has started; idempotent."""
        if self._started is None:
            return
        self._seen.update(descendants(self.pid))
        send(self.pid, signal.SIGCONT)
        if not self._ended:
            self._started.terminate()
            await until(self._has_ended, _STOP_S)
        if not self._ended:
            self._started.kill()
            await asyncio.to_thread(self._started.wait)
        for process in self._seen:
            process.send(signal.SIGKILL)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _ended(self) -> bool:
        return self._started is not None and self._started.poll() is not None

    async def _has_ended(self) -> bool:
        return self._ended


def tree(pid: int) -> list[Process]:
    """A process and all that it has started."""
    own = Process.of(pid)
    return [*descendants(pid), *([] if own is None else [own])]


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all that it has started."""
    for process in tree(pid):
        process.send(number)


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep all threads of a process on these cores; its children stay where they are."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:
            continue  # a thread that has just ended


def divided(cores: Sequence[int] | None = None) -> tuple[list[int], list[int]] | None:
    """A core for the server and the others for what asks it; ``None`` with fewer than two.

    Args:
        cores: default is those that this process may use.
    """
    usable = sorted(os.sched_getaffinity(0) if cores is None else cores)
    return ([usable[-1]], usable[:-1]) if len(usable) > 1 else None


class CpuShare:
    """Cores that processes keep busy, from when this was made.

    Args:
        pid: a process.
        whole: count all that it has started too.
    """

    def __init__(self, pid: int, *, whole: bool = False) -> None:
        self._pid, self._whole = pid, whole
        self._begin, self._before = time.perf_counter(), self._spent()

    def read(self, seconds: float | None = None) -> float:
        """CPU seconds for each second since then.

        Args:
            seconds: in which they were under load; default: all since then.
        """
        passed = time.perf_counter() - self._begin if seconds is None else seconds
        return (self._spent() - self._before) / passed

    def _spent(self) -> float:
        if not self._whole:
            return cpu_seconds(self._pid)
        return sum(cpu_seconds(process.pid) for process in tree(self._pid))
