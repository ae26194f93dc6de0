"""What the kernel knows of processes, out of ``/proc``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_START_FIELD = 19
"""Place of the start time in ``/proc/<pid>/stat``, after the command's name."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds.

    Attributes:
        rss_bytes: resident memory.
        descriptors: open files, sockets and pipes.
        threads: of the process.
    """

    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one of the same number by its start.

    Attributes:
        pid: its number.
        started: clock ticks since the machine started.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process of this number; ``None`` if there is none."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, int(fields[_START_FIELD]))

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped; false once it has ended, reaped or not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_START_FIELD]) == self.started and fields[0] != "Z"

    @property
    def name(self) -> str:
        """Its command line, or what it calls itself; empty once it has ended."""
        try:
            return (_PROC / str(self.pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            return ""

    def usage(self) -> Usage | None:
        """What it holds; ``None`` once it has ended."""
        folder = _PROC / str(self.pid)
        try:
            lines = (folder / "status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            return Usage(
                rss_bytes=int(fields["VmRSS"].split()[0]) * 1024,
                descriptors=sum(1 for _ in (folder / "fd").iterdir()),
                threads=int(fields["Threads"]),
            )
        except (OSError, KeyError):  # a process that is ending has no VmRSS
            return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.alive:
            os.kill(self.pid, number)


def descendants(pid: int) -> Iterator[Process]:
    """Children of a process, their children, and so on."""
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
        children = [c for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return
    for child in map(int, children):
        process = Process.of(child)
        if process is not None:
            yield process
            yield from descendants(child)


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name before may hold spaces and brackets of its own.
    return text.rpartition(")")[2].split()
