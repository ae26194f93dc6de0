"""One training run: the stages of a recipe in order, each resumable, ending in a version."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from model_store.base import find_base
from model_store.manifest import DecodingSpec
from model_store.store import Version, default_cache_dir, open_store
from model_store.text import normalise
from training.brands import brands
from training.data import (
    data_digests,
    data_folder,
    domain_rows,
    mine_all,
    read_source,
    sft_rows,
    split,
    tag_rows,
)
from training.errors import RunError
from training.feedback import Feedback, Score
from training.model import Trainee, load_trainee
from training.packing import Row
from training.pairs import QueryPairs, Scored, World, summarise
from training.recipe import (
    DomainStage,
    GrpoStage,
    Optimiser,
    Recipe,
    SampleStage,
    SftStage,
    Stage,
    recipe_digest,
)
from training.search import recall
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
        TrainingError: data, recipe, judge or run folder cannot be used.
        ModelStoreError: the base or the version to start from is not there, or not as expected.
    """
    begun = started_from(recipe)
    run = Run(run_folder, recipe)
    where = data_folder(data)
    world = World(read_source(recipe.data.source, where))
    course = _Course(run, world, begun.adapter if begun else None, checkpoint_every)
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


class _Course:
    """The stages of a run, one after the other; each goes on from the adapter of the one before."""

    def __init__(self, run: Run, world: World, adapter: Path | None, checkpoint_every: int) -> None:
        self.run, self.recipe, self.world = run, run.recipe, world
        self.adapter = adapter
        self.parts = split(world)
        self.mined = mine_all(world, self.parts, self.recipe)
        _console.print(f"mined {summarise(self.mined)}")
        self._base = find_base(self.recipe.base, default_cache_dir())
        self._checkpoint_every = checkpoint_every
        self._sampled: dict[str, QueryPairs] = {}
        self._trainee: Trainee | None = None

    def stage(self, number: int) -> dict[str, Any]:
        """Carry out a stage, or find that it is done; its record."""
        stage = self.recipe.stages[number]
        record = self.run.done(number)
        if record is None:
            _console.print(f"stage {number}: {stage.kind}")
            record = {"kind": stage.kind, **self._carry_out(stage, number)}
            self.run.finish(number, record)
        if isinstance(stage, SampleStage):
            self._sampled = _load_pairs(self._samples(number))
        else:
            self.adapter = self._output(number)
        return record

    def _carry_out(self, stage: Stage, number: int) -> dict[str, Any]:
        seed = self.recipe.seed + number
        if isinstance(stage, SampleStage):
            return self._sample(stage, number, seed)
        trainee = self._model()
        if isinstance(stage, GrpoStage):
            record = self._align(stage, trainee, number, seed)
        else:
            record = optimise(
                trainee,
                self._rows(stage, seed),
                _optimiser(stage),
                run=self.run.folder,
                stage=number,
                seed=seed,
                checkpoint_every=self._checkpoint_every,
            )
        trainee.model.save_pretrained(
            str(self._output(number)), save_embedding_layers=False, selected_adapters=["default"]
        )
        if isinstance(stage, GrpoStage):
            # It has a second adapter now; a stage after it begins with a fresh one.
            self._trainee = None
        return record

    def _model(self) -> Trainee:
        if self._trainee is None:
            torch.manual_seed(self.recipe.seed)
            self._trainee = load_trainee(self._base, self.recipe, self.adapter)
        self._trainee.model.train()
        return self._trainee

    def _rows(self, stage: DomainStage | SftStage, seed: int) -> list[Row]:
        prompts = self._model().prompts
        if isinstance(stage, DomainStage):
            width = stage.optimiser.row_tokens
            return domain_rows(
                self.world,
                self.parts.train,
                prompts,
                tokens=stage.tokens,
                row_tokens=width,
                seed=seed,
            )
        return sft_rows(
            self.mined,
            self._sampled,
            self.world,
            self.parts,
            self.recipe,
            prompts,
            stage=stage,
            seed=seed,
        )

    def _align(self, stage: GrpoStage, trainee: Trainee, number: int, seed: int) -> dict[str, Any]:
        # TRL takes seconds to import, and no other stage needs it.
        from training.grpo import align

        feedback = Feedback(
            self.world,
            load_judge(self.recipe),
            first=stage.results,
            brands=brands(self.world.titles.values()),
            fold_case=self.recipe.prompt.fold_case,
        )
        return align(
            trainee,
            pick_prompts(self.world, self.parts.train, stage, seed),
            tag_rows(self.mined, self.recipe, trainee.prompts, stage, seed=seed),
            feedback,
            stage,
            max_tokens=self.recipe.decoding.max_tokens,
            run=self.run.folder,
            number=number,
            seed=seed,
            checkpoint_every=self._checkpoint_every,
        )

    def _sample(self, stage: SampleStage, number: int, seed: int) -> dict[str, Any]:
        if self.adapter is None:
            raise RunError("a sample stage needs a stage that trains before it")
        begun = time.time()
        decoding = DecodingSpec(
            temperatures=(stage.temperature,) * stage.per_query,
            max_tokens=self.recipe.decoding.max_tokens,
        )
        version = trial_version(
            self.adapter, self.recipe, self.run.folder / f"trial-{number}", decoding
        )
        queries = pick_queries(self.world, self.parts.train, stage.queries, seed)
        drawn = asyncio.run(_texts(version, queries, fold_case=self.recipe.prompt.fold_case))
        judged, figures = judge_samples(self.world, drawn, self.parts.protected)
        write_json(self._samples(number), [asdict(p) for p in judged])
        return {**figures, "seconds": round(time.time() - begun, 1)}

    def _samples(self, number: int) -> Path:
        return self.run.folder / f"samples-{number}.json"

    def _output(self, number: int) -> Path:
        return self.run.folder / f"adapter-{number}"


def load_judge(recipe: Recipe) -> Score:
    """The judge of a recipe's rewards; without one, every score is 0.

    Raises:
        RunError: the folder holds no judge, or a damaged one.
    """
    if recipe.judge is None:
        return lambda pairs: [0.0] * len(pairs)
    from training.judge import Judge

    return Judge.load(recipe.judge).score


async def _texts(
    version: Version, queries: Sequence[str], *, fold_case: bool
) -> list[tuple[str, list[str]]]:
    async with running(version) as engine:
        bar = tqdm(total=len(queries), desc="sampling", unit="query")
        drawn = []
        async for query, candidates in draw(engine, queries):
            bar.update()
            forms = [
                normalise(c.text, fold_case=fold_case)
                for c in candidates
                if c.relevance is not None
            ]
            drawn.append((query, [f for f in forms if f]))
        bar.close()
        return drawn


def _optimiser(stage: DomainStage | SftStage) -> Optimiser:
    if isinstance(stage, SftStage) and stage.tasks == "write":
        return stage.optimiser.model_copy(update={"tag_weight": 0.0})
    return stage.optimiser


def pick_queries(world: World, queries: Sequence[str], count: int, seed: int) -> list[str]:
    """A reproducible sample of queries that have something to find."""
    found = world.with_relevant(queries)
    return random.Random(seed).sample(found, min(count, len(found)))


def pick_prompts(world: World, queries: Sequence[str], stage: GrpoStage, seed: int) -> list[str]:
    """Queries for GRPO in a reproducible order, ``steps * queries_per_step`` of them.

    ``missed_share`` of them do not find all of their relevant products by themselves, so that there
    is something to gain; the others teach to do no harm. Too few of a kind are used again.
    """
    rng = random.Random(seed)
    missed: list[str] = []
    whole: list[str] = []
    for query in world.with_relevant(queries):
        found = recall(world.plain(query), world.relevant[query])
        (missed if found < 1 else whole).append(query)
    count = stage.steps * stage.queries_per_step
    wanted = round(count * stage.missed_share) if whole else count
    chosen = _again(missed, wanted, rng)
    chosen += _again(whole, count - len(chosen), rng)
    rng.shuffle(chosen)
    return chosen


def _again(pool: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of ``pool``, each as often as any other but for one."""
    chosen: list[str] = []
    while pool and len(chosen) < count:
        chosen += rng.sample(pool, min(len(pool), count - len(chosen)))
    return chosen


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
