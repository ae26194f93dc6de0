"""Versions and engines for the replicas of the tests: ``supply: tests.ray.dependencies:scripted``.

A query says what is to become of it: one with the word ``held`` gives its first candidate and then
nothing for a long time. What happens to it is noted in the folder that ``RAY_TEST_NOTES`` names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from model_store.manifest import Manifest
from service.app.components import RuntimeDependencies
from service.config.settings import Settings
from service.engine.errors import EngineUnavailable, QueryTooLong
from service.engine.protocol import Candidate, Engine
from service.versions.version import ModelVersion, OnTokens
from tests.support.engine import ScriptedEngine
from tests.support.versions import make_manifest

VERSION = "test-1"
_LONG_S = 600.0


class NotingEngine(ScriptedEngine):
    """Does what the query says, and notes in a folder what it was asked."""

    def __init__(self, notes: Path) -> None:
        super().__init__(tag=lambda query, rewrite: 0.75 if query == rewrite else 0.25)
        self._notes = notes

    async def generate(self, query: str) -> AsyncIterator[Candidate]:
        words = query.split()
        if "endless" in words:
            raise QueryTooLong("the query has too many tokens")
        if "broken" in words:
            raise EngineUnavailable("the engine has stopped; try again shortly")
        self._note("begun", query)
        done = False
        try:
            async for candidate in super().generate(query):
                yield candidate
                if "held" in words:
                    await asyncio.sleep(_LONG_S)
            done = True
        finally:
            self._note("done" if done else "ended early", query)

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if any("held" in query for query, _ in pairs):
            self._note("begun", "tag")
            try:
                await asyncio.sleep(_LONG_S)
            finally:
                self._note("ended early", "tag")
        return await super().tag(pairs)

    def _note(self, what: str, query: str) -> None:
        with (self._notes / f"{os.getpid()}").open("a") as file:
            file.write(f"{what}: {query}\n")


async def scripted(_settings: Settings) -> RuntimeDependencies:
    """One version, whose engines need no model."""
    notes = Path(os.environ["RAY_TEST_NOTES"])

    async def make(_manifest: Manifest, on_tokens: OnTokens) -> Engine:
        engine = NotingEngine(notes)
        engine.on_tokens = on_tokens
        return engine

    return RuntimeDependencies(versions=[ModelVersion(make_manifest(VERSION))], engines=make)
