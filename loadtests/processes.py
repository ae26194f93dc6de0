"""Servers that the load tests start: readiness, cores, CPU time, and a certain end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from loadtests.client import HttpTransport
from loadtests.exchange import NoReply

START_S = 900.0
"""Timeout of a start; the first one merges the model's weights."""
_STOP_S = 60.0
_POLL_S = 0.05


class ServerFailed(RuntimeError):
    """A server did not start, or did not answer as expected."""


class Child:
    """A process of ours; a context manager that ends it and all of its descendants.

    Args:
        command: command line.
        log: file for standard output and standard error.
        environment: changes to our environment; ``None`` removes a variable.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self._command = list(command)
        self.log = log
        merged = {**os.environ, **(environment or {})}
        self.environment = {name: v for name, v in merged.items() if v is not None}
        self._started: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs; a negative number is the signal that ended it."""
        return self._popen.poll()

    def start(self) -> None:
        """Start the process without waiting for it to be ready."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._started = subprocess.Popen(  # noqa: S603 - our own programs
                self._command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def until(self, holds: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Wait until ``holds()``.

        Raises:
            ServerFailed: the process ended, or the time is over; the message ends with its log.
        """

        async def holds_or_ended() -> bool:
            return self._ended() or await holds()

        if not await until(holds_or_ended, timeout_s) or self.exit_code is not None:
            raise ServerFailed(f"{' '.join(self._command[:4])}... did not get ready: {self.tail()}")

    async def until_answers(self, url: str, path: str, timeout_s: float = START_S) -> None:
        """Wait until ``GET path`` returns 200.

        Raises:
            ServerFailed: the process ended, or the time is over.
        """
        async with HttpTransport(url) as transport:
            await self.until(lambda: answers(transport, path), timeout_s)

    async def until_exit(self, timeout_s: float) -> int | None:
        """Wait for the exit code; ``None`` if it still runs after ``timeout_s``."""

        async def ended() -> bool:
            return self._ended()

        await until(ended, timeout_s)
        return self.exit_code

    def tail(self, characters: int = 600) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace").strip()[-characters:]

    def pause(self) -> None:
        """Stop it and its descendants (SIGSTOP), so that they use no CPU."""
        send(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after :meth:`pause`."""
        send(self.pid, signal.SIGCONT)

    async def close(self) -> None:
        """End it and its descendants; idempotent."""
        if self._started is None:
            return
        if not self._ended():
            self.resume()
            self._started.terminate()
            if await self.until_exit(_STOP_S) is None:
                self._started.kill()
                await asyncio.to_thread(self._started.wait)
        for process in self._seen:
            # A stopped engine core cannot notice that its parent is gone.
            with suppress(psutil.NoSuchProcess):
                process.kill()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _ended(self) -> bool:
        """Whether it has ended; else its descendants are noted, to be ended with it."""
        if self.exit_code is not None:
            return True  # its number may belong to another process now
        self._seen.update(tree(self.pid)[1:])
        return False

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        if self._started is None:
            raise ServerFailed(f"{' '.join(self._command[:4])} has not been started")
        return self._started


async def answers(transport: HttpTransport, path: str) -> bool:
    """Whether ``GET path`` returns 200."""
    try:
        code, _ = await transport.get(path)
    except NoReply:
        return False
    return code == 200


async def until(
    holds: Callable[[], Awaitable[bool]], timeout_s: float, *, poll_s: float = _POLL_S
) -> bool:
    """Wait until ``holds()``; false if it does not hold within ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(poll_s)
    return True


async def output(
    *command: str,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
) -> bytes:
    """Run a program to its end; its standard output and standard error.

    Raises:
        ServerFailed: it failed, or ran longer than ``timeout_s``.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        if cores:
            os.sched_setaffinity(process.pid, cores)
        async with asyncio.timeout(timeout_s):
            printed, _ = await process.communicate()
    except TimeoutError:
        raise ServerFailed(f"{' '.join(command[:4])} ran longer than {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        end = printed.decode(errors="replace").strip()[-300:]
        raise ServerFailed(f"{' '.join(command[:4])} failed: {end}")
    return printed


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of a process.

    Attributes:
        rss_bytes: resident memory.
        descriptors: open files, sockets and pipes.
        threads: number of threads.
    """

    rss_bytes: int
    descriptors: int
    threads: int


def usage(process: psutil.Process) -> Usage | None:
    """Resources of a process; ``None`` if it has ended."""
    try:
        with process.oneshot():
            return Usage(process.memory_info().rss, process.num_fds(), process.num_threads())
    except psutil.Error:
        return None


def alive(process: psutil.Process) -> bool:
    """Whether a process runs or is stopped; false once it has ended, reaped or not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def tree(pid: int) -> list[psutil.Process]:
    """A process, then all of its descendants; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all of its descendants."""
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep all threads of a process on these cores; its children are not moved."""
    for thread in psutil.Process(pid).threads():
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(thread.id, cores)


def divided(cores: Sequence[int] | None = None) -> tuple[list[int], list[int]] | None:
    """One core for the server and the others for its clients; ``None`` with fewer than two.

    Args:
        cores: default: all cores that this process may use.
    """
    usable = sorted(os.sched_getaffinity(0) if cores is None else cores)
    return ([usable[-1]], usable[:-1]) if len(usable) > 1 else None


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, user and system, in seconds."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
