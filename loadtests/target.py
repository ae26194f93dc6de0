"""The service under test: ``requery serve`` as a process of its own, on a free port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from loadtests.processes import Process, Usage, descendants
from service.config.settings import Settings

START_S = 600.0
"""Longest that a start may take: the first one merges the model's weights."""
_STOP_S = 60.0
_POLL_S = 0.05
_NOT_TAKEN_OVER = {
    f"REQUERY_{name}"
    for name in ("HOST", "PORT", "REDIS_URL", "ADMIN_KEY", "API_KEYS_FILE", "OVERRIDES_FILE")
}
"""A benchmark must not touch what the caller's own service uses."""

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class TargetFailed(RuntimeError):
    """The service could not be started, or did not do what a scenario waits for."""


class Target:
    """A running service; a context manager that ends it and its engine core whatever happens.

    Args:
        folder: for its log.
        settings: REQUERY_* variables; those of the environment hold too, but for addresses and
            keys.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        inherited = {k: v for k, v in os.environ.items() if k not in _NOT_TAKEN_OVER}
        self._environment = {
            **inherited,
            **(settings or {}),
            "REQUERY_HOST": "127.0.0.1",
            "REQUERY_PORT": "0",
            "PYTHONUNBUFFERED": "1",
        }
        self._started: subprocess.Popen[bytes] | None = None
        self._stack = AsyncExitStack()
        self._transport: HttpTransport | None = None
        self._seen: set[Process] = set()
        self._device = "cpu"
        self.start_s = 0.0
        """Seconds from starting the process to ready."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
        if self._started is None:
            return
        self._note()
        if self._started.poll() is None:
            self._started.terminate()
            await asyncio.to_thread(self._reap)
        for process in self._seen:
            # An engine core that is stopped cannot notice that its parent is gone.
            process.send(signal.SIGKILL)

    @property
    def transport(self) -> HttpTransport:
        """For requests that are no load; load has a transport of its own."""
        if self._transport is None:
            raise TargetFailed("the service has not been started")
        return self._transport

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._port()}"

    @property
    def process(self) -> Process:
        """The service's own process."""
        process = Process.of(self._popen.pid)
        if process is None:
            raise TargetFailed("the service has ended")
        return process

    @property
    def engine(self) -> Process | None:
        """Its engine core; ``None`` while there is none."""
        children = [p for p in descendants(self._popen.pid) if p.alive]
        self._seen.update(children)
        named = [p for p in children if "EngineCore" in p.name]
        return max(named, key=lambda p: p.started, default=None)

    @property
    def default_deadline_s(self) -> float:
        """Deadline of a /rewrite that names none."""
        named = self._environment.get("REQUERY_DEFAULT_DEADLINE_MS")
        gpu = self._device == "cuda"
        return (int(named) if named else Settings.model_construct().deadline_ms(gpu=gpu)) / 1000

    @property
    def exit_code(self) -> int | None:
        """Of the process; negative: the signal that ended it; ``None``: it runs."""
        return self._popen.poll()

    def usage(self) -> tuple[Usage | None, Usage | None]:
        """What the service and its engine core hold."""
        engine = self.engine
        return self.process.usage(), None if engine is None else engine.usage()

    async def ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        try:
            code, _ = await self.transport.get("/readyz")
        except NoReply:
            return False
        return code == 200

    async def metrics(self) -> Samples:
        """Every sample by name and labels.

        Raises:
            NoReply: the service does not answer.
        """
        _, text = await self.transport.get("/metrics")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    async def until_exit(self, patience_s: float) -> int | None:
        """Exit code once it has ended; ``None`` if it has not by then."""
        if not await until(self._has_ended, patience_s):
            return None
        return self.exit_code

    def events(self, level: str) -> Counter[str]:
        """How often it logged each event of a level."""
        return Counter(str(e.get("event")) for e in self._log() if e.get("level") == level)

    async def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._started = subprocess.Popen(  # noqa: ASYNC220 - our own program, at once
                [sys.executable, "-m", "service.cli", "serve"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        if not await until(self._is_listening, START_S):
            raise self._failed()
        self._transport = await self._stack.enter_async_context(HttpTransport(self.url))
        while not await self.ready():
            self._note()
            if self.exit_code is not None or time.monotonic() - begin > START_S:
                raise self._failed()
            await asyncio.sleep(_POLL_S)
        self.start_s = time.monotonic() - begin

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        if self._started is None:
            raise TargetFailed("the service has not been started")
        return self._started

    @property
    def _out(self) -> Path:
        return self._folder / "service.log"

    @property
    def _err(self) -> Path:
        return self._folder / "service.err"

    def _note(self) -> None:
        """Remember what it has started, to end that too."""
        self._seen.update(descendants(self._popen.pid))

    def _reap(self) -> None:
        try:
            self._popen.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    async def _has_ended(self) -> bool:
        self._note()
        return self.exit_code is not None

    async def _is_listening(self) -> bool:
        if self.exit_code is not None:
            raise self._failed()
        return bool(self._port())

    def _port(self) -> int:
        """Port that the service says it listens on; 0 if it has not said."""
        for event in self._log():
            if event.get("event") == "listening":
                self._device = str(event.get("device", "cpu"))
                return int(event["port"])
        return 0

    def _log(self) -> Iterator[dict[str, Any]]:
        with self._out.open("rb") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # half a line, or not ours
                if isinstance(event, dict):
                    yield event

    def _failed(self) -> TargetFailed:
        said = self._err.read_text(errors="replace").strip() or f"see {self._out}"
        return TargetFailed(f"the service did not get ready (exit code {self.exit_code}): {said}")


async def until(
    holds: Callable[[], Awaitable[bool]], patience_s: float, *, poll_s: float = _POLL_S
) -> bool:
    """Wait until ``holds()``; false if it does not within ``patience_s``."""
    end = time.monotonic() + patience_s
    while not await holds():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(poll_s)
    return True
