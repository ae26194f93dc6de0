"""``requery serve`` in a process of its own, on engines that need no model.

Everything but the model is the real thing: settings (``REQUERY_*``), listener, HTTP server,
application, life cycle. It logs the same JSON lines to standard output; the line of the event
``listening`` has the port::

    python -m tests.support.serve_scripted --port 0 --delay-ms 50 --slots 16

Each candidate takes ``--delay-ms``, in one of ``--slots`` places that all generations share: the
capacity is ``slots / (candidates * delay)`` generations a second. Every query has the same
rewrites. Loading the version takes ``--start-ms``. The version is called ``test-1``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Sequence

from model_store.manifest import Manifest
from service.app.components import RuntimeDependencies
from service.config.settings import Settings
from service.engine.protocol import Candidate, Engine
from service.server.command import run
from service.telemetry.logging import configure_logging
from service.versions.version import ModelVersion, OnTokens
from tests.support.engine import ScriptedEngine, candidates
from tests.support.versions import make_manifest

REWRITES = (("steel stake", 0.98), ("metal stake", 0.91), ("iron stake", 0.8), ("post", 0.3))
"""Candidates of every query, in the order in which they finish."""


class PacedEngine(ScriptedEngine):
    """An engine whose candidates take a given time each, so many at a time.

    Args:
        delay_s: time of one candidate, in seconds.
        slots: candidates at a time, over all generations.
        start_s: time until it is started, in seconds.
    """

    def __init__(self, *, delay_s: float, slots: int, start_s: float) -> None:
        super().__init__(tag=lambda _query, _rewrite: 0.5)
        self._delay_s = delay_s
        self._start_s = start_s
        self._slots = asyncio.Semaphore(slots)
        self.outstanding = self.progress = 0

    async def start(self) -> None:
        await asyncio.sleep(self._start_s)

    async def generate(self, query: str) -> AsyncIterator[Candidate]:
        """All candidates decode side by side, as far as there are slots; cancelling frees them."""
        tasks = [asyncio.create_task(self._one(c)) for c in candidates(REWRITES)]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        await self._decode()
        return await super().tag(pairs)

    async def _decode(self) -> None:
        self.outstanding += 1
        try:
            async with self._slots:
                await asyncio.sleep(self._delay_s)
            self.progress += 1
        finally:
            self.outstanding -= 1

    async def _one(self, candidate: Candidate) -> Candidate:
        await self._decode()
        if self.on_tokens is not None:
            self.on_tokens(3, len(candidate.token_ids) + 1)
        return candidate


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default=os.environ.get("REQUERY_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("REQUERY_PORT", "0")))
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--start-ms", type=float, default=0.0)
    given = parser.parse_args(arguments)
    os.environ.setdefault("REQUERY_WARM_QUERIES", ";")
    settings = Settings(host=given.host, port=given.port, default_version="test-1")
    configure_logging(settings.log_level)

    async def make(_manifest: Manifest, on_tokens: OnTokens) -> Engine:
        engine = PacedEngine(
            delay_s=given.delay_ms / 1000, slots=given.slots, start_s=given.start_ms / 1000
        )
        engine.on_tokens = on_tokens
        return engine

    async def supply(_settings: Settings) -> RuntimeDependencies:
        return RuntimeDependencies(versions=[ModelVersion(make_manifest())], engines=make)

    run(settings, supply)


if __name__ == "__main__":
    main()
