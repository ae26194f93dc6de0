"""The engine alone as a peer: asks :mod:`loadtests.bench.raw_engine` over two pipes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.child import START_S, send, tree
from loadtests.bench.peer import PeerFailed, Work
from loadtests.bench.raw_engine import PLAIN
from loadtests.bench.versions import BenchVersions

_STOP_S = 10.0


class RawEnginePeer:
    """``AsyncLLM`` in a process of its own.

    Args:
        versions: where the bench version is.
        version: its name.
        folder: for its log.
        extended: with what the service adds inside the engine core; else as vLLM comes.
        command: of the process; default: the real engine.
    """

    def __init__(
        self,
        versions: BenchVersions,
        version: str,
        folder: Path,
        *,
        extended: bool = True,
        command: Sequence[str] = (sys.executable, "-m", "loadtests.bench.raw_engine"),
    ) -> None:
        self.name = "raw AsyncLLM" if extended else "raw AsyncLLM as vLLM comes"
        self._versions = versions
        self._extended = extended
        self._command = [*command, version, *([] if extended else [PLAIN])]
        self._log = folder / f"raw_engine{'' if extended else '_plain'}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count()
        self._work = Work()

    @property
    def setup(self) -> dict[str, Any]:
        """See :class:`Peer`."""
        own = "arguments, environment" + (" and extension" if self._extended else "")
        return {"engine": f"the service's own {own}"}

    async def start(self) -> None:
        """See :class:`Peer`."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**os.environ, **self._versions.settings},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        try:
            async with asyncio.timeout(START_S):
                told = await self._line()
        except TimeoutError:
            raise PeerFailed(f"the raw engine took longer than {START_S:.0f} s to start") from None
        if not told.get("ready"):
            raise PeerFailed(f"the raw engine did not start: {self._tail()}")
        self._listening = asyncio.create_task(self._listen())

    async def ask(self, query: str) -> None:
        """See :class:`Peer`."""
        if self._process is None or self._process.stdin is None:
            raise PeerFailed("the raw engine has not been started")
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._process.stdin.write(orjson.dumps({"id": number, "query": query}) + b"\n")
        told = await answer
        if "error" in told:
            raise PeerFailed(told["error"])
        self._work += Work(told["prompt"], told["generated"])

    async def work(self) -> Work:
        """See :class:`Peer`."""
        return self._work

    def freeze(self) -> None:
        """See :class:`Peer`."""
        if self._process is not None:
            send(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """See :class:`Peer`."""
        if self._process is not None:
            send(self._process.pid, signal.SIGCONT)

    async def close(self) -> None:
        """See :class:`Peer`."""
        process, self._process = self._process, None
        if process is None:
            return
        send(process.pid, signal.SIGCONT)
        started = tree(process.pid)
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        for one in started:
            one.send(signal.SIGKILL)
        if self._listening is not None:
            await self._listening

    async def _line(self) -> dict[str, Any]:
        """The next answer; empty once there are no more."""
        if self._process is None or self._process.stdout is None:
            return {}
        line = await self._process.stdout.readline()
        told: dict[str, Any] = orjson.loads(line) if line else {}
        return told

    async def _listen(self) -> None:
        while told := await self._line():
            self._waiting.pop(told["id"]).set_result(told)
        for answer in self._waiting.values():
            answer.set_result({"error": f"the raw engine ended: {self._tail()}"})

    def _tail(self) -> str:
        return self._log.read_text(errors="replace").strip()[-600:]
