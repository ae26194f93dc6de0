"""A threshold and a number of rewrites that help a shop, by its own search."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import md5
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model_store.files import writing
from model_store.materialise import materialise
from model_store.store import StoredVersion
from service.engine.loading import load_engine
from service.engine.protocol import Engine
from service.filtering.candidates import Scored, Selection
from service.filtering.filters import CandidateFilter
from service.filtering.generation import Generation
from training.adapt.queries import KnownQuery
from training.data.search import DEPTH, REWRITE_WEIGHT, RRF_K, SearchIndex, fuse, recall
from training.statistics import bootstrap
from training.trial import draw

HARM = 0.05
"""Recall that a harmed query loses more than."""
MOST_HARMED = 0.02
REWRITES = (1, 2, 3, 4)
STEP = 0.05
_LOWER = 0.1
"""On made queries the threshold goes only so far below the version's own: their products are only
those that hold all words, so that a wrong rewrite costs them less than it costs a shopper."""
_LOWEST = 0.5
_WORTH = 0.001
"""Gain in recall that a change of settings must bring."""

Candidates = Mapping[str, Sequence[Scored]]
Way = Callable[[Engine], Engine]
"""Puts a version's corrector and synonyms around the engine of its weights."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a version answers with."""

    min_relevance: float
    max_rewrites: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What rewrites do to a query's results."""

    plain: float
    recall: float
    answered: bool

    @property
    def gain(self) -> float:
        """Recall gained over the plain query."""
        return self.recall - self.plain

    @property
    def harmed(self) -> bool:
        """Whether it loses more than :data:`HARM`."""
        return self.gain < -HARM


class Judge:
    """Measures settings on queries by the shop's search.

    Args:
        index: over the shop's titles.
        depth: results that a search is measured by.
    """

    def __init__(self, index: SearchIndex, depth: int) -> None:
        self._index, self.depth = index, depth
        self._kept: dict[str, list[str]] = {}

    def search(self, text: str) -> list[str]:
        """Ids of the first results."""
        if text not in self._kept:
            self._kept[text] = self._index.search(text, self.depth)
        return self._kept[text]

    def fused(self, query: str, rewrites: Sequence[str]) -> list[str]:
        """Ids of the first results of a query and its rewrites together."""
        lists = [self.search(text) for text in (query, *rewrites)]
        weights = [1.0, *[REWRITE_WEIGHT] * len(rewrites)]
        # In proportion to the depth: else a rewrite moves nothing within the first 40 results.
        k = round(RRF_K * self.depth / DEPTH)
        return fuse(lists, self.depth, k, weights=weights)

    def effect(self, query: KnownQuery, rewrites: Sequence[str]) -> Effect:
        """What ``rewrites`` do to a query."""
        plain = recall(self.search(query.text), query.relevant)
        if not rewrites:
            return Effect(plain, plain, answered=False)
        return Effect(plain, recall(self.fused(query.text, rewrites), query.relevant), True)


class Answers:
    """What a version answers, for any setting.

    Args:
        candidates: all of each query.
        accept: the version's filter.
    """

    def __init__(self, candidates: Candidates, accept: CandidateFilter) -> None:
        self._filter = accept
        self._judged = {q: self._filter.judge(q, found) for q, found in candidates.items()}

    def selection(self, query: str, setting: Setting) -> Selection:
        """Accepted and rejected candidates."""
        return self._filter.select(self._judged.get(query, ()), **asdict(setting))

    def __call__(self, query: str, setting: Setting) -> list[str]:
        """The rewrites, best first."""
        return [one.text for one in self.selection(query, setting).accepted]


def halves(queries: Sequence[KnownQuery]) -> tuple[list[KnownQuery], list[KnownQuery]]:
    """Queries to choose by, and queries to report on, by what they mean."""
    parts: tuple[list[KnownQuery], list[KnownQuery]] = ([], [])
    for one in queries:
        digest = md5(one.meant.encode(), usedforsecurity=False).digest()
        parts[digest[0] % 2].append(one)
    return parts


def choose(
    judge: Judge, queries: Sequence[KnownQuery], answers: Answers, own: Setting, *, made: bool
) -> Setting:
    """The setting with the highest gain that harms at most :data:`MOST_HARMED` of the queries.

    Args:
        judge: the shop's search.
        queries: to choose by.
        answers: of the version.
        own: setting of the version before, which stays unless another gains :data:`_WORTH` more.
        made: whether the queries are made from titles.
    """
    lowest = own.min_relevance - _LOWER if made else _LOWEST
    steps = round((0.95 - lowest) / STEP)
    # The most careful first, so that it wins where others gain no more.
    grid = [round(0.95 - STEP * i, 2) for i in range(steps + 1)]
    best, score = None, 0.0
    for setting in [own, *(Setting(t, n) for t, n in product(grid, REWRITES))]:
        effects = [judge.effect(one, answers(one.text, setting)) for one in queries]
        harmed = sum(e.harmed for e in effects) / max(1, len(effects))
        gain = sum(e.gain for e in effects) / max(1, len(effects))
        if harmed <= MOST_HARMED and (best is None or gain > score + _WORTH):
            best, score = setting, gain
    # Where every setting harms more, the most careful one does least.
    return best or Setting(grid[0], 1)


def figures(effects: Sequence[Effect]) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over queries: ``[mean, low, high]``."""
    rows = {
        "plain_recall": [e.plain for e in effects],
        "recall": [e.recall for e in effects],
        "gain": [e.gain for e in effects],
        "harmed": [float(e.harmed) for e in effects],
        "answered": [float(e.answered) for e in effects],
    }
    return {"queries": len(effects)} | {k: bootstrap(v).as_list() for k, v in rows.items()}


def differences(mine: Sequence[Effect], theirs: Sequence[Effect]) -> dict[str, Any]:
    """Mean differences on the same queries, with 95 % paired bootstrap intervals."""
    pairs = list(zip(mine, theirs, strict=True))
    rows = {
        "recall": [a.recall - b.recall for a, b in pairs],
        "gain": [a.gain - b.gain for a, b in pairs],
        "harmed": [float(a.harmed) - float(b.harmed) for a, b in pairs],
        "answered": [float(a.answered) - float(b.answered) for a, b in pairs],
    }
    return {k: bootstrap(v).as_list() for k, v in rows.items()}


class Journal:
    """Candidates drawn so far, a line of JSON for each query, so that a killed run goes on.

    Args:
        path: of the file; a torn last line is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, list[Scored]] = {}
        lines = path.read_bytes().splitlines() if path.is_file() else []
        for line in lines:
            try:
                query, rows = json.loads(line)
                self.found[query] = [Scored(*row) for row in rows]
            except (ValueError, TypeError):
                continue

    def add(self, query: str, found: Sequence[Scored]) -> None:
        """Keep a query's candidates.

        Raises:
            CannotWrite: the disk is full.
        """
        self.found[query] = list(found)
        with writing(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The first end of line ends a line that a kill has torn.
            with self._path.open("ab") as file:
                file.write(b"\n" + json.dumps([query, [list(one) for one in found]]).encode())


def draw_candidates(
    base: StoredVersion,
    ways: Mapping[str, Way],
    queries: Sequence[str],
    folder: Path,
) -> dict[str, Candidates]:
    """All candidates of each query in each way; one engine for all, because the weights agree.

    Args:
        base: the version with the weights.
        ways: name -> what is put around the engine.
        queries: in normal form.
        folder: keeps what is drawn.

    Raises:
        EngineUnavailable: the engine could not start.
        ModelStoreError: the weights cannot be merged, or the disk is full.
    """
    journals = {name: Journal(folder / f"{name}.jsonl") for name in ways}
    missing = {n: [q for q in queries if q not in j.found] for n, j in journals.items()}
    if any(missing.values()):
        asyncio.run(_draw(base, ways, missing, journals))
    return {name: {q: journal.found[q] for q in queries} for name, journal in journals.items()}


async def _draw(
    base: StoredVersion,
    ways: Mapping[str, Way],
    missing: Mapping[str, Sequence[str]],
    journals: Mapping[str, Journal],
) -> None:
    inner = load_engine(base.manifest, materialise(base))
    await inner.start()
    try:
        total = sum(map(len, missing.values()))
        with tqdm(total=total, desc="asking the model", unit="query") as bar:
            for name, way in ways.items():
                async for query, found in draw(way(inner), missing[name]):
                    journals[name].add(query, Generation.of(found).candidates)
                    bar.update()
    finally:
        await inner.close()
