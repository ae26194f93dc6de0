"""The service as a process of its own, its log, and what it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from tests.support.waiting import wait_until

PATIENCE_S = 120
"""Bounds what should have happened; nothing is asserted about how long it took."""
ROOT = Path(__file__).parents[2]
_KEPT = {"REQUERY_CACHE_DIR", "REQUERY_MODEL_SOURCES"}
"""Settings of the developer's that say where the model is; no other may reach the service."""


def environment(**settings: object) -> dict[str, str]:
    """Variables of a process: ``settings`` are ``REQUERY_*``, without the prefix, in any case."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("REQUERY_") or k in _KEPT}
    return kept | {f"REQUERY_{name.upper()}": str(value) for name, value in settings.items()}


class ServiceProcess:
    """``requery serve``: starts on entering a ``with`` block, is killed at its end.

    Args:
        arguments: of the command line, without the port.
        ready: whether to wait until it is ready, or only until it listens.
        settings: as :func:`environment` takes them.
    """

    COMMAND: Sequence[str] = (sys.executable, "-m", "service.cli", "serve")

    def __init__(self, *arguments: str, ready: bool = True, **settings: object) -> None:
        self._arguments = arguments
        self._ready = ready
        self._environment = environment(**settings)
        self._events: list[dict[str, Any]] = []
        self._said = threading.Condition()
        self._ended = False
        self.port = 0
        self.err = ""
        """What it wrote to standard error, once it has ended."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self.COMMAND, "--port", "0", *self._arguments],
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read_log), threading.Thread(target=self._read_errors)
        ]  # fmt: skip
        for reader in self._readers:
            reader.start()
        try:
            self.port = int(self.until("listening")["port"])
            if self._ready:
                self.until("version_ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An engine core that is stopped cannot notice that its parent has gone.
        below = self.descendants()
        self._process.kill()
        self._process.wait()
        for process in below:
            if process.is_running():
                process.kill()
        for reader in self._readers:
            reader.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def events(self) -> list[dict[str, Any]]:
        """Log lines so far."""
        with self._said:
            return list(self._events)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def client(self) -> httpx.Client:
        """Asks it; to be closed by the caller."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def descendants(self) -> list[psutil.Process]:
        """Processes below it; none once it has ended."""
        return psutil.Process(self.pid).children(recursive=True) if self.running else []

    def named(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one kind so far."""
        return [line for line in self.events if line["event"] == event]

    def until(self, event: str) -> dict[str, Any]:
        """The first log line of that kind, once it is there; the test's own timeout bounds it."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self._events if line["event"] == event), None)

        with self._said:
            self._said.wait_for(lambda: self._ended or found())
            line = found()
        if line is None:
            self._process.wait()
            for reader in self._readers:
                reader.join()
            raise AssertionError(
                f"no {event!r} in the log, which has {self.events[-5:]} {self.err}"
            )
        return line

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def insist(self, number: signal.Signals) -> None:
        """Send a signal until it has ended: signals that follow each other at once count as one."""

        def ended() -> bool:
            if self.running:
                self.tell(number)
            return not self.running

        wait_until(ended, poll_s=0.05)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        code = self._process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join()
        return code

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._said:
                    self._events.append(json.loads(line))
                    self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            self.err = lines.read()


class ScriptedProcess(ServiceProcess):
    """The same on the scripted engine of :mod:`tests.support.serve_scripted`, without a model."""

    COMMAND = (sys.executable, "-m", "tests.support.serve_scripted")
