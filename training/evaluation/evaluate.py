"""Evaluation: gains and risks of a version's rewrites on a search page.

Each query's rewrites come from the serving engine and pass the service's own filters. The search
engine is BM25 over the catalogue; a query and its accepted rewrites are fused by reciprocal rank
at the budget of the query alone (100 products), at equal weights or with less weight on rewrites.

Per query, with R its relevant products (grade >= 2.33) and E its engaged ones (>= 2.67,
simulated):

* ``recall``: share of R in the fused 100; ``gain`` its difference to the query alone;
* ``harmed``: recall falls by more than 0.05; ``helped``: it rises by more than 0.05;
* ``productivity``: share of E that the rewrites alone retrieve;
* ``increment``: share of E that the rewrites retrieve and the query alone does not
  (both after BEQUE, arXiv 2311.03758);
* ``hit_rate``: engaged products that the rewrites of their query find / all engaged products;
* ``relevance``: mean score that a judge (:mod:`training.judge.model`) gives, for the query in
  correct spelling, to the first ten results of each rewrite; of queries that have one;
* ``covered``: at least one accepted rewrite that differs in more than case, space or inflection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from model_store.manifest import FilterSpec
from model_store.store import StoredVersion
from service.filtering.candidates import Scored
from service.filtering.filters import CandidateFilter
from training.data.dataset import Split
from training.data.pairs import PairMiner, World, is_trivial
from training.data.schema import GRADE_ENGAGED
from training.data.search import REWRITE_WEIGHT, fuse, recall
from training.errors import DataError
from training.judge.first_results import FirstResults
from training.statistics import bootstrap, hit_rate
from training.trial import draw, running

HARM = 0.05
MOST = 4
"""Number of rewrites that a search backend may request instead of the version's own."""

Rewriter = Callable[[str], Sequence[str]]
"""Rewrites of a normalised query, best first; may be empty."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one query's rewrites."""

    plain: float
    recall: float
    productivity: float
    increment: float
    rewrites: int
    covered: bool
    relevance: float | None = None
    """Mean judge score of the first results of its rewrites; ``None`` without rewrites."""
    hits: int = field(default=0, compare=False)
    """Engaged products that the rewrites find."""
    engaged: int = field(default=0, compare=False)

    @property
    def gain(self) -> float:
        """Recall gained over the plain query."""
        return self.recall - self.plain


def judge_rewrites(
    world: World,
    query: str,
    rewrites: Sequence[str],
    weight: float = 1.0,
    first: FirstResults | None = None,
) -> Outcome:
    """Search with the query and its rewrites; the query must have a relevant product.

    Args:
        world: the data and its search engine.
        query: normalised.
        rewrites: best first.
        weight: of each rewrite's ranking; the query's own is 1.
        first: judge scores of first results, if there is a judge.
    """
    base = world.plain(query)
    results = [world.search(r) for r in rewrites]
    weights = [1.0, *[weight] * len(results)]
    wanted = world.relevant[query]
    grades = world.grades[query]
    engaged = {p for p, g in grades.items() if g >= GRADE_ENGAGED}
    found = engaged.intersection(*[set().union(*results)]) if results else set()
    return Outcome(
        plain=recall(base, wanted),
        recall=recall(fuse([base, *results], world.depth, weights=weights), wanted),
        productivity=len(found) / len(engaged) if engaged else 0.0,
        increment=len(found.difference(base)) / len(engaged) if engaged else 0.0,
        rewrites=len(rewrites),
        covered=any(not is_trivial(query, r) for r in rewrites),
        relevance=sum(first(world.meant(query), r) for r in rewrites) / len(rewrites)
        if first and rewrites
        else None,
        hits=len(found),
        engaged=len(engaged),
    )


def slices(world: World, queries: Sequence[str]) -> dict[str, list[str]]:
    """Queries by kind: all, misspelled (a correction is known), short (1-2 words), long (5+)."""
    return {
        "all": list(queries),
        "misspelled": [q for q in queries if q in world.corrections],
        "short": [q for q in queries if len(q.split()) <= 2],
        "long": [q for q in queries if len(q.split()) >= 5],
    }


def summarise(outcomes: Mapping[str, Outcome], queries: Sequence[str]) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over ``queries``."""
    rows = [outcomes[q] for q in queries]

    def interval(value: Callable[[Outcome], float]) -> list[float]:
        return bootstrap([value(o) for o in rows]).as_list()

    return {
        "queries": len(rows),
        "plain_recall": interval(lambda o: o.plain),
        "recall": interval(lambda o: o.recall),
        "gain": interval(lambda o: o.gain),
        "harmed": interval(lambda o: float(o.gain < -HARM)),
        "helped": interval(lambda o: float(o.gain > HARM)),
        "productivity": interval(lambda o: o.productivity),
        "increment": interval(lambda o: o.increment),
        "covered": interval(lambda o: float(o.covered)),
        "rewrites": interval(lambda o: float(o.rewrites)),
        "hit_rate": hit_rate([o.hits for o in rows], [o.engaged for o in rows]).as_list(),
        "relevance": bootstrap([o.relevance for o in rows if o.relevance is not None]).as_list(),
    }


Row = dict[str, Outcome]
"""Query -> outcome, for one rewriting method."""


def judge_row(
    world: World,
    queries: Sequence[str],
    rewriter: Rewriter,
    weight: float = 1.0,
    first: FirstResults | None = None,
) -> Row:
    """Outcome of a rewriter for each query."""
    rewrites = {q: rewriter(q) for q in queries}
    if first is not None:
        first.prepare((world.meant(q), text) for q, texts in rewrites.items() for text in texts)
    return {q: judge_rewrites(world, q, rewrites[q], weight, first) for q in queries}


def by_slice(world: World, row: Row) -> dict[str, Any]:
    """One row of the table: :func:`summarise` of every slice."""
    parts = slices(world, list(row))
    return {name: summarise(row, part) for name, part in parts.items() if part}


def measure(
    world: World, queries: Sequence[str], rewriter: Rewriter, weight: float = 1.0
) -> dict[str, Any]:
    """One row of the table: every slice of ``queries`` under ``rewriter``."""
    return by_slice(world, judge_row(world, queries, rewriter, weight))


PAIRED: dict[str, Callable[[Outcome], float]] = {
    "recall": lambda o: o.recall,
    "productivity": lambda o: o.productivity,
    "increment": lambda o: o.increment,
    "harmed": lambda o: float(o.gain < -HARM),
    "helped": lambda o: float(o.gain > HARM),
    "covered": lambda o: float(o.covered),
}


def compare(world: World, row: Row, other: Row) -> dict[str, dict[str, list[float]]]:
    """Differences of ``row`` to ``other`` on the same queries, by slice.

    Returns:
        slice -> figure -> mean difference and its 95 % paired bootstrap interval.
    """
    parts = slices(world, list(row))
    return {
        name: {
            **{
                figure: bootstrap([value(row[q]) - value(other[q]) for q in part]).as_list()
                for figure, value in PAIRED.items()
            },
            "relevance": bootstrap(_both(row, other, part)).as_list(),
        }
        for name, part in parts.items()
        if part
    }


def _both(row: Row, other: Row, queries: Sequence[str]) -> list[float]:
    """Differences in relevance where both have a rewrite."""
    pairs = ((row[q].relevance, other[q].relevance) for q in queries)
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]


def corrections_of(world: World) -> Rewriter:
    """The search engine's own spelling corrections: an oracle for spelling."""
    return lambda query: [world.corrections[query]] if query in world.corrections else []


def filtered(
    candidates: Mapping[str, Sequence[Scored]],
    spec: FilterSpec,
    brands: Sequence[str],
    *,
    fold_case: bool,
) -> Rewriter:
    """The service's answers, given all candidates of each query."""
    accept = CandidateFilter(spec, fold_case=fold_case, brands=brands)

    def rewrites(query: str) -> list[str]:
        chosen = accept.select(accept.judge(query, candidates.get(query, ())))
        return [one.text for one in chosen.accepted]

    return rewrites


def tag_pairs(
    world: World, parts: Split, queries: Sequence[str], seed: int
) -> tuple[list[tuple[str, str]], list[bool]]:
    """Pairs to judge for ``queries``, mined as for training, echoes left out.

    The other side of a pair may be any query of the data.
    """
    miner = PairMiner(world, [*parts.train, *parts.development, *parts.held_out], seed)
    pairs: list[tuple[str, str]] = []
    labels: list[bool] = []
    for query in tqdm(queries, desc="mining pairs", unit="query"):
        mined = miner.mine(query)
        for items, relevant in ((mined.write + mined.accept, True), (mined.reject, False)):
            pairs += [(query, item.text) for item in items]
            labels += [relevant] * len(items)
    return pairs, labels


async def ask(
    version: StoredVersion, queries: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> tuple[dict[str, list[Scored]], list[float]]:
    """All candidates of each query, and the relevance of each pair, of a version's own engine."""
    candidates: dict[str, list[Scored]] = {}
    scores: list[float] = []
    async with running(version) as engine:
        with tqdm(total=len(queries), desc="rewriting", unit="query") as bar:
            async for query, found in draw(engine, queries):
                candidates[query] = [Scored(c.text, c.relevance) for c in found]
                bar.update()
        for start in tqdm(range(0, len(pairs), 256), desc="tagging", unit="batch"):
            scores += await engine.tag(list(pairs[start : start + 256]))
    return candidates, scores


@dataclass(frozen=True, slots=True)
class Drawn:
    """All candidates and tags of a version for a set of queries; filters can be tried on them."""

    candidates: dict[str, list[Scored]]
    labels: list[bool]
    scores: list[float]


def draw_version(
    world: World, parts: Split, queries: Sequence[str], version: StoredVersion
) -> Drawn:
    """Run a version's engine over ``queries``: all candidates, and tags of mined pairs.

    Raises:
        DataError: the data has no relevant or no irrelevant pairs to judge.
        EngineUnavailable: the engine could not start.
    """
    pairs, labels = tag_pairs(world, parts, queries, seed=0)
    if len(set(labels)) < 2:
        raise DataError("the data gives no pairs of both kinds, so tags cannot be measured on it")
    candidates, scores = asyncio.run(ask(version, queries, pairs))
    return Drawn(candidates, labels, scores)


def rows_of(
    world: World,
    queries: Sequence[str],
    drawn: Drawn,
    spec: FilterSpec,
    brands: Sequence[str],
    *,
    fold_case: bool,
    first: FirstResults | None = None,
) -> dict[str, Row]:
    """Outcomes without the filter, with it, and with it and up to :data:`MOST` rewrites."""
    everything = FilterSpec(
        min_relevance=0.0, max_rewrites=32, keep_numbers=False, brands_file=None
    )
    several = spec.model_copy(update={"max_rewrites": MOST})
    unfiltered = filtered(drawn.candidates, everything, (), fold_case=fold_case)
    answered = filtered(drawn.candidates, spec, brands, fold_case=fold_case)
    up_to = filtered(drawn.candidates, several, brands, fold_case=fold_case)
    return {
        "unfiltered": judge_row(world, queries, unfiltered, 1.0, first),
        "version": judge_row(world, queries, answered, 1.0, first),
        "version, less weight": judge_row(world, queries, answered, REWRITE_WEIGHT, first),
        f"up to {MOST} rewrites": judge_row(world, queries, up_to, 1.0, first),
        f"up to {MOST}, less weight": judge_row(world, queries, up_to, REWRITE_WEIGHT, first),
    }
