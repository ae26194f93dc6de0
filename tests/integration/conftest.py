"""What integration tests share: one real engine.

The engine is one for all tests, since a start takes half a minute on two cores.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from structlog.typing import EventDict
from tokenizers import Tokenizer

from model_store.manifest import Manifest
from model_store.materialise import materialise
from model_store.prompt import PromptFormat
from model_store.store import open_store
from service.engine.loading import load_engine
from service.engine.vllm import VllmEngine
from service.engine.worker.packed import PACKED

VERSION = "sft-1"
START_SECONDS = 240
"""Patience, not a promise: the machine that runs the tests may be slow and busy."""


@dataclass(frozen=True)
class Served:
    """A real version, its engine, and what the engine reported."""

    manifest: Manifest
    folder: Path
    prompts: PromptFormat
    engine: VllmEngine
    tokens: list[tuple[int, int]] = field(default_factory=list)
    events: list[EventDict] = field(default_factory=list)
    """What was logged at its start."""

    @property
    def packed(self) -> bool:
        """Whether this machine's matrices are not vLLM's own."""
        return self.engine.matrices in PACKED


@pytest.fixture(scope="session")
def materialised() -> tuple[Manifest, Path]:
    """The packaged version and its merged weights, in the cache that the service uses too."""
    version = open_store().get(VERSION)
    return version.manifest, materialise(version)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(materialised: tuple[Manifest, Path]) -> AsyncIterator[Served]:
    """The one engine. Tests that use it run in the session's event loop."""
    manifest, folder = materialised
    tokens: list[tuple[int, int]] = []

    def record(prompt: int, generated: int) -> None:
        tokens.append((prompt, generated))

    prompts = PromptFormat(Tokenizer.from_file(str(folder / "tokenizer.json")), manifest.prompt)
    engine = load_engine(manifest, folder, on_tokens=record)
    with warnings.catch_warnings(), capture_logs() as events:
        # Importing vLLM and torch sets off deprecations among themselves.
        warnings.simplefilter("ignore")
        await asyncio.wait_for(engine.start(), START_SECONDS)
    yield Served(manifest, folder, prompts, engine, tokens, events)
    await engine.close()
