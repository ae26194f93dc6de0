"""One training run: the stages of a recipe in order, each resumable, ending in a version."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model_store.base import find_base
from model_store.store import default_cache_dir
from training.data import data_digests, data_folder, domain_rows, mine_all, read_source, sft_rows, split
from training.errors import RunError
from training.model import Trainee, load_trainee, merged, sample
from training.pairs import QueryPairs, Scored, World, summarise
from training.recipe import Recipe, SampleStage, SftStage, recipe_digest
from training.selfplay import judge_samples
from training.stages import optimise

_console = Console(stderr=True)


class Run:
    """A run's folder: ``recipe.json``, ``figures.jsonl``, ``stage-N/`` and ``adapter/`` at the end.

    Raises:
        RunError: the folder belongs to another recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / "recipe.json"
        digest = recipe_digest(recipe)
        if marker.is_file() and json.loads(marker.read_text())["digest"] != digest:
            raise RunError(
                f"{folder} holds a run of another recipe, or of this one before it was changed; "
                "choose another --run folder or remove it"
            )
        write_json(marker, {"digest": digest, "recipe": recipe.model_dump(mode="json")})

    def done(self, stage: int) -> dict[str, Any] | None:
        """The record of a finished stage."""
        path = self.folder / f"stage-{stage}.json"
        record: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return record

    def finish(self, stage: int, record: dict[str, Any]) -> None:
        """Mark a stage as finished."""
        write_json(self.folder / f"stage-{stage}.json", record)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


def train(
    recipe: Recipe, run_folder: Path, data: Path | None, *, checkpoint_every: int = 50
) -> Path:
    """Run every stage that is not finished yet.

    Returns:
        The folder of the trained adapter, with ``record.json`` beside it.

    Raises:
        TrainingError: data, recipe or run folder cannot be used.
        ModelStoreError: the base is not there, or not the one expected.
    """
    run = Run(run_folder, recipe)
    where = data_folder(data)
    world = World(read_source(recipe.data.source, where))
    parts = split(world)
    mined = mine_all(world, parts.train, recipe, parts.train)
    _console.print(f"mined {summarise(mined)}")
    base = find_base(recipe.base, default_cache_dir())
    started = time.time()
    trainee: Trainee | None = None
    adapter: Path | None = None
    records: list[dict[str, Any]] = []
    sampled: dict[str, QueryPairs] = {}
    for number, stage in enumerate(recipe.stages):
        samples = run.folder / f"samples-{number}.json"
        output = run.folder / f"adapter-{number}"
        record = run.done(number)
        if record is None:
            if trainee is None:
                torch.manual_seed(recipe.seed)
                trainee = load_trainee(base, recipe, adapter)
            _console.print(f"stage {number}: {stage.kind}")
            seed = recipe.seed + number
            if isinstance(stage, SampleStage):
                record = _sample(trainee, world, parts.train, recipe, stage, seed, samples)
            else:
                if isinstance(stage, SftStage):
                    rows = sft_rows(
                        mined, sampled, world, parts.train, recipe, trainee.prompts,
                        tokens=stage.tokens, row_tokens=stage.optimiser.row_tokens,
                        write_only=stage.tasks == "write", seed=seed,
                    )  # fmt: skip
                else:
                    rows = domain_rows(
                        world, parts.train, trainee.prompts,
                        tokens=stage.tokens, row_tokens=stage.optimiser.row_tokens, seed=seed,
                    )  # fmt: skip
                trainee.model.train()
                record = optimise(
                    trainee, rows, stage.optimiser, run=run.folder, stage=number, seed=seed,
                    checkpoint_every=checkpoint_every,
                )  # fmt: skip
                trainee.model.save_pretrained(str(output))
            run.finish(number, {"kind": stage.kind, **record})
        records.append(run.done(number) or {})
        if isinstance(stage, SampleStage):
            sampled = _load_pairs(samples)
        else:
            adapter = output
    if adapter is None:
        raise RunError("the recipe has no stage that trains")
    write_json(
        run.folder / "record.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "stages": records,
            "pairs": summarise(mined),
            "queries": {"train": len(parts.train), "held_out": len(parts.held_out)},
            "data": data_digests(recipe.data.source, where),
            "seconds": round(time.time() - started, 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
            "libraries": {n: metadata.version(n) for n in ("torch", "transformers", "peft")},
            "commit": _commit(),
        },
    )
    return adapter


def _sample(
    trainee: Trainee,
    world: World,
    train_queries: tuple[str, ...],
    recipe: Recipe,
    stage: SampleStage,
    seed: int,
    path: Path,
) -> dict[str, Any]:
    begun = time.time()
    drawn = sample(
        merged(trainee),
        trainee,
        pick_queries(world, train_queries, stage.queries, seed),
        per_query=stage.per_query,
        temperature=stage.temperature,
        max_tokens=recipe.decoding.max_tokens,
        batch=stage.batch,
        seed=seed,
    )
    judged, figures = judge_samples(world, drawn, stage.queries)
    write_json(path, [asdict(p) for p in judged])
    return {**figures, "seconds": round(time.time() - begun, 1)}


def pick_queries(world: World, queries: tuple[str, ...], count: int, seed: int) -> list[str]:
    """A reproducible sample of queries that have something to find."""
    found = world.with_relevant(queries)
    return random.Random(seed).sample(found, min(count, len(found)))


def _load_pairs(path: Path) -> dict[str, QueryPairs]:
    pairs = {}
    for item in json.loads(path.read_text(encoding="utf-8")):
        parts = {k: [Scored(**s) for s in item[k]] for k in ("write", "accept", "reject")}
        pairs[item["query"]] = QueryPairs(item["query"], **parts)
    return pairs


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
