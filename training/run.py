"""One training run: the stages of a recipe in order, each resumable, ending in a version."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from model_store.store import default_cache_dir, open_store
from training.data.dataset import (
    data_digests,
    data_folder,
    read_source,
)
from training.data.pairs import World, summarise
from training.errors import RunError
from training.finetuning.curves import plot_run
from training.folder import Run, write_json
from training.recipe import (
    Recipe,
)
from training.schedule import StageRunner

_console = Console(stderr=True)


def train(
    recipe: Recipe, run_folder: Path, data: Path | None, *, checkpoint_every: int = 50
) -> Path:
    """Run every stage that is not finished yet.

    Returns:
        The folder of the trained adapter, with ``record.json`` beside it.

    Raises:
        TrainingError: data, recipe, judge or run folder cannot be used.
        ModelStoreError: the base or the version to start from is not there, or not as expected.
    """
    begun = started_from(recipe)
    run = Run(run_folder, recipe)
    where = data_folder(data)
    world = World(read_source(recipe.data.source, where))
    course = StageRunner(run, world, begun.adapter if begun else None, checkpoint_every)
    records = [course.stage(number) for number in range(len(recipe.stages))]
    if course.adapter is None:
        raise RunError("the recipe has no stage that trains")
    write_json(
        run.folder / "record.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "start": {"version": recipe.start, "digest": begun.digest} if begun else None,
            "stages": records,
            "pairs": summarise(course.mined),
            "queries": {"train": len(course.parts.train), "held_out": len(course.parts.held_out)},
            "data": data_digests(recipe.data.source, where),
            "seconds": round(sum(record.get("seconds", 0.0) for record in records), 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
            "libraries": {n: metadata.version(n) for n in ("torch", "transformers", "peft", "trl")},
            "commit": _commit(),
        },
    )
    plot_run(run.folder, [stage.kind for stage in recipe.stages], recipe.name)
    return course.adapter


@dataclass(frozen=True, slots=True)
class Start:
    """The version that a run goes on from."""

    adapter: Path
    digest: str


def started_from(recipe: Recipe) -> Start | None:
    """The adapter of the version that the recipe names as its start.

    Raises:
        RunError: it is no adapter, or of another base or prompt than the recipe's.
        ModelStoreError: there is no such version.
    """
    if recipe.start is None:
        return None
    version = open_store().get(recipe.start)
    manifest = version.manifest
    if manifest.weights.kind != "adapter":
        raise RunError(f"{recipe.start} is no adapter, so no run can go on from it")
    if manifest.base.sha256 != recipe.base.sha256 or manifest.prompt != recipe.prompt:
        raise RunError(
            f"{recipe.start} has another base or prompt than the recipe; make the two the same"
        )
    return Start(version.folder(default_cache_dir()), manifest.digest)


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
