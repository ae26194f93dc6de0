"""One training run: all stages of a recipe, each resumable, and the record of the run."""

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
from training.data.curated_pairs import summarise_curated
from training.data.dataset import data_digests, data_folder, read_general, read_source
from training.data.pairs import World, summarise
from training.errors import RunError
from training.finetuning.curves import plot_run
from training.folder import Run, write_json
from training.recipe import Recipe
from training.schedule import StageRunner

_console = Console(stderr=True)


def train(
    recipe: Recipe, run_folder: Path, data: Path | None, *, checkpoint_every: int = 50
) -> Path:
    """Run all unfinished stages.

    Returns:
        The folder of the trained adapter, with ``record.json`` beside it.

    Raises:
        TrainingError: data, recipe, judge or run folder cannot be used.
        ModelStoreError: the base or the start version is missing or damaged.
    """
    begun = started_from(recipe)
    run = Run(run_folder, recipe)
    where = data_folder(data)
    world = World(read_source(recipe.data.source, where))
    general = read_general(world, where) if recipe.data.source == "general" else None
    adapter = begun.adapter if begun else None
    runner = StageRunner(run, world, adapter, checkpoint_every, general)
    records = [runner.stage(number) for number in range(len(recipe.stages))]
    if runner.adapter is None:
        raise RunError("the recipe has no stage that trains")
    write_json(
        run.folder / "record.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "start": {"version": recipe.start, "digest": begun.digest} if begun else None,
            "stages": records,
            "pairs": summarise(runner.mined),
            "curated": summarise_curated(general.curated.train) if general else None,
            "queries": {"train": len(runner.parts.train), "held_out": len(runner.parts.held_out)},
            "data": data_digests(recipe.data.source, where),
            "seconds": round(sum(record.get("seconds", 0.0) for record in records), 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
            "libraries": {n: metadata.version(n) for n in ("torch", "transformers", "peft", "trl")},
            "commit": _commit(),
        },
    )
    plot_run(run.folder, [stage.kind for stage in recipe.stages], recipe.name)
    return runner.adapter


@dataclass(frozen=True, slots=True)
class Start:
    """The version that a run starts from."""

    adapter: Path
    digest: str


def started_from(recipe: Recipe) -> Start | None:
    """The adapter of the version that the recipe names as its start.

    Raises:
        RunError: it is not an adapter, or its base or prompt differs from the recipe's.
        ModelStoreError: there is no such version.
    """
    if recipe.start is None:
        return None
    version = open_store().get(recipe.start)
    manifest = version.manifest
    if manifest.weights.kind != "adapter":
        raise RunError(f"{recipe.start} is not an adapter; a run can only start from one")
    if manifest.base.sha256 != recipe.base.sha256 or manifest.prompt != recipe.prompt:
        raise RunError(f"{recipe.start} and the recipe differ in base or prompt; make them equal")
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
