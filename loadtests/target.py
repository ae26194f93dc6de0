"""The service under test: ``requery serve`` as a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.client import HttpTransport
from loadtests.processes import Child, ServerFailed, Usage, alive, answers, tree, usage
from service.config.settings import Settings
from tests.support.redis_server import free_port

_NOT_INHERITED = {
    f"REQUERY_{name}"
    for name in ("HOST", "PORT", "REDIS_URL", "ADMIN_KEY", "API_KEYS_FILE", "OVERRIDES_FILE")
}
"""A benchmark must not touch the user's own service."""

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class Target(Child):
    """A running service.

    Args:
        folder: for its log.
        settings: REQUERY_* variables; other variables are inherited, but not addresses and keys.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        port = free_port()
        own = {
            **dict.fromkeys(_NOT_INHERITED & os.environ.keys()),
            **(settings or {}),
            "REQUERY_HOST": "127.0.0.1",
            "REQUERY_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
        }
        super().__init__(
            [sys.executable, "-m", "service.cli", "serve"], folder / "service.log", own
        )
        self.url = f"http://127.0.0.1:{port}"
        """Scheme, host and port."""
        self._transport: HttpTransport | None = None

    async def __aenter__(self) -> Self:
        try:
            self.start()
            await self.until_answers(self.url, "/readyz")
            self._transport = await HttpTransport(self.url).__aenter__()
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End the service and its engine core; idempotent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.__aexit__(None, None, None)
        await super().close()

    @property
    def transport(self) -> HttpTransport:
        """HTTP client of the running service."""
        if self._transport is None:
            raise ServerFailed("the service has not been started")
        return self._transport

    @property
    def engine(self) -> psutil.Process | None:
        """The newest engine core; ``None`` while there is none."""
        cores = []
        for process in tree(self.pid)[1:]:
            with suppress(psutil.NoSuchProcess):
                if alive(process) and "EngineCore" in " ".join(process.cmdline()):
                    cores.append(process)
        self._seen.update(cores)
        return max(cores, key=lambda process: process.create_time(), default=None)

    @property
    def default_deadline_s(self) -> float:
        """Deadline of a /rewrite request that sets none, in seconds."""
        chosen = self.environment.get("REQUERY_DEFAULT_DEADLINE_MS")
        gpu = any(event.get("device") == "cuda" for event in self._events())
        return (int(chosen) if chosen else Settings.model_construct().deadline_ms(gpu=gpu)) / 1000

    def usage(self) -> tuple[Usage | None, Usage | None]:
        """Resources of the service and of its engine core."""
        engine = self.engine
        return usage(psutil.Process(self.pid)), None if engine is None else usage(engine)

    async def ready(self) -> bool:
        """Whether ``/readyz`` returns 200."""
        return await answers(self.transport, "/readyz")

    async def metrics(self) -> Samples:
        """All samples of ``/metrics`` by name and labels.

        Raises:
            NoReply: the service does not answer.
        """
        _, text = await self.transport.get("/metrics")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    def events(self, level: str) -> Counter[str]:
        """Number of log events of a level, by name."""
        return Counter(str(e.get("event")) for e in self._events() if e.get("level") == level)

    def _events(self) -> Iterator[dict[str, Any]]:
        if not self.log.is_file():
            return
        with self.log.open("rb") as lines:
            for line in lines:
                with suppress(ValueError):  # half a line, or another program's
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event
