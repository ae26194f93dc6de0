"""From a trained adapter to a version that the service's own engine can run.

Sampling during training, evaluation and the finished version all go through the model store and
the serving engine, so that what is measured is what is served.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model_store.manifest import DecodingSpec, FilterSpec, Manifest, SpellingSpec, WeightsSpec
from model_store.materialise import materialise
from model_store.store import FolderSource, Store, StoredVersion, default_cache_dir, pack_version
from service.engine.corrected import with_spelling
from service.engine.loading import EngineSettings, load_engine
from service.engine.protocol import Candidate, Engine
from training.recipe import Recipe

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def pack_adapter(
    adapter: Path,
    recipe: Recipe,
    folder: Path,
    *,
    decoding: DecodingSpec | None = None,
    filters: FilterSpec | None = None,
    spelling: SpellingSpec | None = None,
    training: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Manifest:
    """Write ``adapter`` as a version into ``folder`` (weights in bfloat16, then the manifest).

    Other files that are already in ``folder``, such as a model card, become part of the version.

    Raises:
        InvalidVersion: the folder holds what no version may hold.
        CannotWrite: the disk is full or read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = ADAPTER_FILES
    shutil.copyfile(adapter / config, folder / config)
    tensors = {
        k: v.to(torch.bfloat16).contiguous() for k, v in load_file(adapter / weights).items()
    }
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    return pack_version(
        folder,
        name=recipe.name,
        description=recipe.description,
        base=recipe.base,
        weights=WeightsSpec(kind="adapter"),
        prompt=recipe.prompt,
        decoding=decoding or recipe.decoding,
        filters=filters or recipe.filter,
        spelling=spelling,
        training=training,
        evaluation=evaluation,
    )


@asynccontextmanager
async def running(
    version: StoredVersion, settings: EngineSettings | None = None
) -> AsyncIterator[Engine]:
    """A started engine of a version, stopped at the end."""
    engine = with_spelling(
        load_engine(version.manifest, materialise(version), settings), version, default_cache_dir()
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def trial_version(
    adapter: Path, recipe: Recipe, folder: Path, decoding: DecodingSpec | None = None
) -> StoredVersion:
    """Pack ``adapter`` under ``folder`` for use within a run."""
    pack_adapter(adapter, recipe, folder / recipe.name, decoding=decoding, filters=FilterSpec())
    return Store([FolderSource(folder)]).get(recipe.name)


async def draw(
    engine: Engine, queries: Sequence[str], *, concurrency: int = 16
) -> AsyncIterator[tuple[str, list[Candidate]]]:
    """All candidates of each query, ``concurrency`` queries at a time, as they finish."""

    async def one(query: str) -> tuple[str, list[Candidate]]:
        return query, [c async for c in engine.generate(query)]

    waiting: set[asyncio.Task[tuple[str, list[Candidate]]]] = set()
    pending: Iterable[str] = iter(queries)
    try:
        for query in pending:
            waiting.add(asyncio.create_task(one(query)))
            if len(waiting) >= concurrency:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in waiting:
            task.cancel()
