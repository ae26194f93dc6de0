"""One training run: the stages of a recipe in order, each resumable, ending in a version."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from model_store.base import find_base
from model_store.manifest import DecodingSpec
from model_store.prompt import PromptFormat
from model_store.store import default_cache_dir
from model_store.text import normalise
from training.data import (
    Split,
    data_digests,
    data_folder,
    domain_rows,
    mine_all,
    read_source,
    sft_rows,
    split,
)
from training.errors import RunError
from training.model import Trainee, load_trainee
from training.packing import Row
from training.pairs import QueryPairs, Scored, World, summarise
from training.recipe import (
    DomainStage,
    Optimiser,
    Recipe,
    SampleStage,
    SftStage,
    recipe_digest,
)
from training.selfplay import judge_samples
from training.stages import optimise
from training.trial import draw, running, trial_version

_console = Console(stderr=True)


class Run:
    """A run's folder: ``recipe.json``, ``figures.jsonl``, ``stage-N/`` and ``adapter/`` at the end.

    A recipe that gained stages at its end goes on where the shorter one ended.

    Raises:
        RunError: the folder belongs to another recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / "recipe.json"
        digest = recipe_digest(recipe)
        if marker.is_file() and not _goes_on(marker, recipe):
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


def _goes_on(marker: Path, recipe: Recipe) -> bool:
    """Whether ``recipe`` is the one that a run began with, or that one and more stages.

    The file's content is digested again rather than its digest compared: a newer release may
    count other fields than the one that wrote it.
    """
    try:
        begun = Recipe.model_validate(json.loads(marker.read_text())["recipe"])
    except (ValueError, KeyError, TypeError):
        return False
    same = recipe.model_copy(update={"stages": recipe.stages[: len(begun.stages)]})
    return recipe_digest(begun) == recipe_digest(same)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


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
    mined = mine_all(world, parts, recipe)
    _console.print(f"mined {summarise(mined)}")
    base = find_base(recipe.base, default_cache_dir())
    trainee: Trainee | None = None
    adapter: Path | None = None
    records: list[dict[str, Any]] = []
    sampled: dict[str, QueryPairs] = {}
    for number, stage in enumerate(recipe.stages):
        samples = run.folder / f"samples-{number}.json"
        output = run.folder / f"adapter-{number}"
        record = run.done(number)
        if record is None:
            if trainee is None and not isinstance(stage, SampleStage):
                torch.manual_seed(recipe.seed)
                trainee = load_trainee(base, recipe, adapter)
            _console.print(f"stage {number}: {stage.kind}")
            seed = recipe.seed + number
            if isinstance(stage, SampleStage):
                if adapter is None:
                    raise RunError("a sample stage needs a stage that trains before it")
                chosen = pick_queries(world, parts.train, stage.queries, seed)
                record = _sample(
                    adapter,
                    run.folder / f"trial-{number}",
                    world,
                    chosen,
                    parts.protected,
                    recipe,
                    stage,
                    samples,
                )
            elif trainee is not None:
                rows = _rows(stage, mined, sampled, world, parts, recipe, trainee.prompts, seed)
                trainee.model.train()
                record = optimise(
                    trainee, rows, _optimiser(stage), run=run.folder, stage=number, seed=seed,
                    checkpoint_every=checkpoint_every,
                )  # fmt: skip
                trainee.model.save_pretrained(str(output), save_embedding_layers=False)
            record = {"kind": stage.kind, **(record or {})}
            run.finish(number, record)
        records.append(record)
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
            "seconds": round(sum(record.get("seconds", 0.0) for record in records), 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
            "libraries": {n: metadata.version(n) for n in ("torch", "transformers", "peft")},
            "commit": _commit(),
        },
    )
    return adapter


def _rows(
    stage: DomainStage | SftStage,
    mined: Mapping[str, QueryPairs],
    sampled: Mapping[str, QueryPairs],
    world: World,
    parts: Split,
    recipe: Recipe,
    prompts: PromptFormat,
    seed: int,
) -> list[Row]:
    if isinstance(stage, DomainStage):
        width = stage.optimiser.row_tokens
        return domain_rows(
            world, parts.train, prompts, tokens=stage.tokens, row_tokens=width, seed=seed
        )
    return sft_rows(mined, sampled, world, parts, recipe, prompts, stage=stage, seed=seed)


def _optimiser(stage: DomainStage | SftStage) -> Optimiser:
    if isinstance(stage, SftStage) and stage.tasks == "write":
        return stage.optimiser.model_copy(update={"tag_weight": 0.0})
    return stage.optimiser


def _sample(
    adapter: Path,
    folder: Path,
    world: World,
    queries: Sequence[str],
    protected: frozenset[str],
    recipe: Recipe,
    stage: SampleStage,
    path: Path,
) -> dict[str, Any]:
    begun = time.time()
    decoding = DecodingSpec(
        temperatures=(stage.temperature,) * stage.per_query,
        max_tokens=recipe.decoding.max_tokens,
    )
    version = trial_version(adapter, recipe, folder, decoding)

    async def texts() -> list[tuple[str, list[str]]]:
        async with running(version) as engine:
            bar = tqdm(total=len(queries), desc="sampling", unit="query")
            drawn = []
            async for query, candidates in draw(engine, queries):
                bar.update()
                forms = [
                    normalise(c.text, fold_case=recipe.prompt.fold_case)
                    for c in candidates
                    if c.relevance is not None
                ]
                drawn.append((query, [f for f in forms if f]))
            bar.close()
            return drawn

    judged, figures = judge_samples(world, asyncio.run(texts()), protected)
    write_json(path, [asdict(p) for p in judged])
    return {**figures, "seconds": round(time.time() - begun, 1)}


def pick_queries(world: World, queries: Sequence[str], count: int, seed: int) -> list[str]:
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
