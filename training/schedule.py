"""Runs the stages of a recipe in order; each stage is resumable."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from model_store.base import find_base
from model_store.manifest import DecodingSpec
from model_store.prompt import PromptFormat
from model_store.store import StoredVersion, default_cache_dir
from model_store.text import normalise
from training.alignment.feedback import Feedback
from training.alignment.preference import Drawn, align_by_preference, load, prefer, save
from training.alignment.selfplay import judge_samples
from training.data.brands import brands
from training.data.dataset import (
    development_pairs_to_judge,
    domain_rows,
    general_rows,
    mine_all,
    misspell_some,
    sft_rows,
    split,
    tag_rows,
    training_pairs_to_judge,
)
from training.data.general import General
from training.data.packing import Row
from training.data.pairs import QueryPairs, Scored, World, summarise
from training.data.picking import pick_prompts, pick_queries
from training.errors import RunError
from training.finetuning.model import Trainee, load_trainee
from training.finetuning.precision import Chosen, choose_precision, convert
from training.finetuning.stages import optimise
from training.folder import Run, write_json
from training.judge.first_results import Score
from training.recipe import (
    DomainStage,
    DpoStage,
    GrpoStage,
    Optimiser,
    Recipe,
    SampleStage,
    SftStage,
    Stage,
    TagsStage,
)
from training.trial import draw, running, trial_version

_console = Console(stderr=True)


class StageRunner:
    """Runs stages in order; each starts from the adapter of the stage before."""

    def __init__(
        self,
        run: Run,
        world: World,
        adapter: Path | None,
        checkpoint_every: int,
        general: General | None = None,
    ) -> None:
        self.run, self.recipe, self.world = run, run.recipe, world
        self.adapter = adapter
        self.parts = split(world)
        self.mined = mine_all(world, self.parts, self.recipe)
        self._general = general
        _console.print(f"mined {summarise(self.mined)}")
        self._base = find_base(self.recipe.base, default_cache_dir())
        self._checkpoint_every = checkpoint_every
        self._sampled: dict[str, QueryPairs] = {}
        self._trainee: Trainee | None = None
        self._chosen: Chosen | None = None

    def stage(self, number: int) -> dict[str, Any]:
        """Run a stage unless it is done; return its record."""
        stage = self.recipe.stages[number]
        record = self.run.done(number)
        if record is None:
            _console.print(f"stage {number}: {stage.kind}")
            record = {"kind": stage.kind, **self._execute(stage, number)}
            self.run.finish(number, record)
        if isinstance(stage, SampleStage):
            self._sampled = load_pairs(self._samples(number))
        else:
            self.adapter = self._output(number)
        return record

    def _execute(self, stage: Stage, number: int) -> dict[str, Any]:
        seed = self.recipe.seed + number
        if isinstance(stage, SampleStage):
            return self._sample(stage, number, seed)
        trainee = self._model()
        if isinstance(stage, GrpoStage):
            record = self._align(stage, trainee, number, seed)
        elif isinstance(stage, DpoStage):
            record = self._prefer(stage, trainee, number, seed)
        elif isinstance(stage, TagsStage):
            record = self._refit(stage, trainee, seed)
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
        record["precision"] = "bfloat16" if trainee.bf16 else "float32"
        if isinstance(stage, GrpoStage):
            # GRPO adds a second adapter to the model; the next stage loads a fresh one.
            self._trainee = None
        return record

    def _model(self) -> Trainee:
        if self._trainee is None:
            torch.manual_seed(self.recipe.seed)
            self._trainee = load_trainee(self._base, self.recipe, self.adapter)
            self._choose(self._trainee)
        self._trainee.model.train()
        return self._trainee

    def _choose(self, trainee: Trainee) -> None:
        """Choose the precision, once a process: a run may be resumed on another machine."""
        if self._chosen is None:
            self._chosen = choose_precision(trainee.model, self.recipe.precision)
            stages = enumerate(self.recipe.stages)
            left = [stage for number, stage in stages if self.run.done(number) is None]
            _console.print(self._chosen.told(left))
        else:
            convert(trainee.model, self._chosen.precision)
        trainee.bf16 = self._chosen.precision == "bfloat16"

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
        if self._general is not None:
            return general_rows(
                self._general, self.mined, self.recipe, prompts, stage=stage, seed=seed
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
        from training.alignment.grpo import align

        count = stage.steps * stage.queries_per_step
        queries = pick_prompts(self.world, self.parts.train, count, stage.missed_share, seed)
        # Before misspelt queries are added to the world: they are not in the data.
        rows = tag_rows(
            self.mined, self.world, self.parts, self.recipe, trainee.prompts, stage=stage, seed=seed
        )
        return align(
            trainee,
            misspell_some(self.world, self.parts, queries, stage.misspelt_share, seed),
            rows,
            self._feedback(stage),
            stage,
            max_tokens=self.recipe.decoding.max_tokens,
            run=self.run.folder,
            number=number,
            seed=seed,
            checkpoint_every=self._checkpoint_every,
        )

    def _prefer(self, stage: DpoStage, trainee: Trainee, number: int, seed: int) -> dict[str, Any]:
        path = self._samples(number)
        if not path.is_file():
            queries = pick_prompts(
                self.world, self.parts.train, stage.queries, stage.missed_share, seed
            )
            decoding = DecodingSpec(
                temperatures=(stage.temperature,) * stage.per_query,
                max_tokens=self.recipe.decoding.max_tokens,
            )
            drawn = asyncio.run(_drawn(self._trial(number, decoding), trainee.prompts, queries))
            save(prefer(self._feedback(stage), drawn, stage), path)
        return align_by_preference(
            trainee,
            load(path),
            stage,
            run=self.run.folder,
            number=number,
            seed=seed,
            checkpoint_every=self._checkpoint_every,
        )

    def _refit(self, stage: TagsStage, trainee: Trainee, seed: int) -> dict[str, Any]:
        from training.finetuning.tag_head import refit

        learnt = training_pairs_to_judge(self.world, self.parts, stage.queries, seed)
        development = development_pairs_to_judge(self.world, self.parts, seed)
        if self._general is not None:
            curated = self._general.curated
            some = random.Random(seed).sample(curated.train, min(stage.queries, len(curated.train)))
            learnt = chain(learnt, self._general.to_judge(some, seed))
            development = chain(development, self._general.to_judge(curated.development, seed))
        return refit(
            trainee,
            learnt,
            development,
            ridge=stage.ridge,
            max_tokens=self.recipe.decoding.max_tokens,
        )

    def _feedback(self, stage: GrpoStage | DpoStage) -> Feedback:
        return Feedback(
            self.world,
            load_judge(self.recipe),
            first=stage.results,
            brands=brands(self.world.titles.values()),
            fold_case=self.recipe.prompt.fold_case,
        )

    def _trial(self, number: int, decoding: DecodingSpec) -> StoredVersion:
        if self.adapter is None:
            raise RunError("no earlier stage trains a model that this stage could sample from")
        folder = self.run.folder / f"trial-{number}"
        return trial_version(self.adapter, self.recipe, folder, decoding)

    def _sample(self, stage: SampleStage, number: int, seed: int) -> dict[str, Any]:
        begun = time.time()
        decoding = DecodingSpec(
            temperatures=(stage.temperature,) * stage.per_query,
            max_tokens=self.recipe.decoding.max_tokens,
        )
        version = self._trial(number, decoding)
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
    """Score function of a recipe's judge; all scores are 0 if it names none.

    Raises:
        RunError: the folder holds no readable judge.
    """
    if recipe.judge is None:
        return lambda pairs: [0.0] * len(pairs)
    from training.judge.model import Judge

    return Judge.load(recipe.judge).score


async def _texts(
    version: StoredVersion, queries: Sequence[str], *, fold_case: bool
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


async def _drawn(
    version: StoredVersion, prompts: PromptFormat, queries: Sequence[str]
) -> list[tuple[str, list[Drawn]]]:
    """All candidates that end with a tag; the tag is the more likely label."""
    labels = prompts.labels
    async with running(version) as engine:
        bar = tqdm(total=len(queries), desc="sampling", unit="query")
        found = []
        async for query, candidates in draw(engine, queries):
            bar.update()
            samples = []
            for one in candidates:
                if one.relevance is not None and one.token_ids:
                    tag = one.relevance >= 0.5
                    ids = (*one.token_ids, labels.relevant if tag else labels.irrelevant)
                    samples.append(Drawn(prompts.normalise(one.text), ids, tag))
            found.append((query, samples))
        bar.close()
        return found


def load_pairs(path: Path) -> dict[str, QueryPairs]:
    """Pairs written by a sample stage, by query."""
    pairs = {}
    for item in json.loads(path.read_text(encoding="utf-8")):
        parts = {k: [Scored(**s) for s in item[k]] for k in ("write", "accept", "reject")}
        pairs[item["query"]] = QueryPairs(item["query"], **parts)
    return pairs
