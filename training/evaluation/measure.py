"""Versions measured side by side, on the same queries and the same pairs."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_store.base import find_base
from model_store.store import StoredVersion, default_cache_dir
from service.filtering.candidates import Scored
from training.data.dataset import Split, split
from training.data.pairs import World
from training.data.search import REWRITE_WEIGHT
from training.errors import DataError, RunError
from training.evaluation.evaluate import (
    MOST,
    Drawn,
    Rewriter,
    Row,
    by_slice,
    compare,
    corrections_of,
    draw_version,
    filtered,
    measure,
    rows_of,
)
from training.folder import write_json
from training.judge.first_results import FirstResults, Score
from training.statistics import bootstrap, tagging

FIRST = 10
"""Number of a rewrite's results that the judge scores."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A version, its candidates and tags, and their outcomes."""

    version: str
    digest: str
    drawn: Drawn
    rows: dict[str, Row]

    @property
    def tagging(self) -> dict[str, object]:
        """Accuracy and AUC of its tags (:func:`training.statistics.tagging`)."""
        return tagging(self.drawn.labels, self.drawn.scores)

    def record(self, world: World) -> dict[str, Any]:
        """All figures with intervals; plain query and corrections are the first rows."""
        queries = list(next(iter(self.rows.values())))
        return {
            "version": self.version,
            "digest": self.digest,
            "tagging": self.tagging,
            "rewrite_weight": REWRITE_WEIGHT,
            "rows": {
                "plain query": measure(world, queries, lambda _: []),
                "spelling corrections (oracle)": measure(world, queries, corrections_of(world)),
                **{name: by_slice(world, row) for name, row in self.rows.items()},
            },
        }


@dataclass(frozen=True, slots=True)
class Exam:
    """The queries that versions are measured on.

    Attributes:
        name: for the report, and for the names of what is kept.
        queries: with a relevant product each.
        parts: folds, from which pairs to judge are mined.
    """

    name: str
    queries: tuple[str, ...]
    parts: Split


def fold_exam(world: World, name: str) -> Exam:
    """A fold of the data that a version was trained on: ``held-out`` or ``development``."""
    parts = split(world)
    fold = parts.held_out if name == "held-out" else parts.development
    return Exam(f"{name} fold", tuple(world.with_relevant(fold)), parts)


def other_exam(world: World, name: str, limit: int, seed: int = 0) -> Exam:
    """Up to ``limit`` queries of data that no stage has seen.

    Raises:
        DataError: no query has a relevant product.
    """
    found = world.with_relevant(world.canonical)
    if not found:
        raise DataError(f"{name}: no query has a relevant product")
    chosen = random.Random(seed).sample(found, min(limit, len(found)))
    return Exam(name, tuple(chosen), Split((), (), tuple(found), frozenset()))


class Bench:
    """Measures versions on one exam.

    Args:
        world: the data.
        exam: the queries.
        drawn: folder that keeps candidates and tags, so that they are drawn once.
        score: a judge, to measure relevance.
    """

    def __init__(
        self, world: World, exam: Exam, drawn: Path | None, score: Score | None = None
    ) -> None:
        self.world, self.exam, self._folder = world, exam, drawn
        self.first = FirstResults(world, score, FIRST) if score else None

    def measure(self, version: StoredVersion) -> Measured:
        """Draw from a version, unless its candidates were kept, and measure the outcomes.

        Raises:
            DataError: the data has no relevant or no irrelevant pairs to judge.
            EngineUnavailable: the engine could not start.
            RunError: a kept file cannot be read.
        """
        manifest = version.manifest
        drawn = self._draw(version)
        rows = rows_of(
            self.world,
            self.exam.queries,
            drawn,
            manifest.filter,
            brands_of(version),
            fold_case=manifest.prompt.fold_case,
            first=self.first,
        )
        return Measured(manifest.name, manifest.digest, drawn, rows)

    def _draw(self, version: StoredVersion) -> Drawn:
        exam = self.exam
        if self._folder is None:
            return draw_version(self.world, exam.parts, exam.queries, version)
        # By digest, although a version with other thresholds has the same candidates: telling
        # them apart is not worth a wrong figure.
        name = f"{version.manifest.name} {version.manifest.digest[:12]} {exam.name}.json"
        path = self._folder / name.replace(" ", "-")
        if path.is_file():
            kept = load_drawn(path)
            if kept.candidates.keys() == set(exam.queries):
                return kept
        drawn = draw_version(self.world, exam.parts, exam.queries, version)
        write_json(path, asdict(drawn))
        return drawn


def prompted_rewriter(version: StoredVersion, exam: Exam, folder: Path | None) -> Rewriter:
    """The untrained base of a version, prompted with examples, behind the version's filters.

    It has no tags: every rewrite counts as relevant.

    Args:
        version: has the base and the filters.
        exam: the queries.
        folder: keeps the rewrites, as in :class:`Bench`.

    Raises:
        RunError: a kept file cannot be read.
        BaseNotFound: the base is not installed.
    """
    from training.evaluation.prompted import PromptedBase

    manifest = version.manifest
    path = (
        folder / f"base {manifest.base.sha256[:12]} {exam.name}.json".replace(" ", "-")
        if folder
        else None
    )
    kept = load_drawn(path).candidates if path is not None and path.is_file() else {}
    if kept.keys() != set(exam.queries):
        base = PromptedBase(find_base(manifest.base, default_cache_dir()))
        drawn = base(exam.queries)
        kept = {query: [Scored(text, 1.0) for text in texts] for query, texts in drawn.items()}
        if path is not None:
            write_json(path, asdict(Drawn(kept, [], [])))
    spec = manifest.filter.model_copy(update={"max_rewrites": MOST})
    return filtered(kept, spec, brands_of(version), fold_case=manifest.prompt.fold_case)


def brands_of(version: StoredVersion) -> list[str]:
    """Brands that a version's rewrites must keep."""
    name = version.manifest.filter.brands_file
    if name is None:
        return []
    return (version.folder(default_cache_dir()) / name).read_text(encoding="utf-8").splitlines()


def load_drawn(path: Path) -> Drawn:
    """Read the file of a bench.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Drawn(
            {query: [Scored(*one) for one in found] for query, found in kept["candidates"].items()},
            [bool(label) for label in kept["labels"]],
            [float(score) for score in kept["scores"]],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove it to draw again") from error


def differences(world: World, mine: Measured, other: Measured) -> dict[str, Any]:
    """``mine`` less ``other``, paired by query (and by pair for tags), with 95 % intervals."""
    right = [
        [(score >= 0.5) == label for label, score in zip(d.labels, d.scores, strict=True)]
        for d in (mine.drawn, other.drawn)
    ]
    return {
        "differences": {
            name: compare(world, row, other.rows[name]) for name, row in mine.rows.items()
        },
        "tag_difference": {
            "accuracy": bootstrap(
                [float(a) - float(b) for a, b in zip(*right, strict=True)]
            ).as_list()
        },
    }
