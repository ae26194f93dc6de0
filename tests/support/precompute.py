"""``requery precompute`` on a scripted engine: ``python -m tests.support.precompute``.

``GENERATED`` in the environment names a file that gets a line for each generation that begins.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

from model_store.manifest import Manifest
from model_store.store import Store
from service.cli import app
from service.config.settings import Settings
from service.engine.protocol import Candidate, Engine
from service.versions.version import EngineFactory, OnTokens
from tests.support.engine import ScriptedEngine


class Logged(ScriptedEngine):
    """Takes a few milliseconds, and writes down what it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    async def generate(self, query: str) -> AsyncIterator[Candidate]:
        with self._path.open("a") as file:
            file.write(f"{query}\n")
        await asyncio.sleep(0.005)
        async for candidate in super().generate(query):
            yield candidate


def engine_factory(_store: Store, _settings: Settings) -> EngineFactory:
    async def make(_manifest: Manifest, _on_tokens: OnTokens) -> Engine:
        return Logged(Path(os.environ["GENERATED"]))

    return make


if __name__ == "__main__":
    with patch("service.precompute.prepare.engine_factory", engine_factory):
        app()
