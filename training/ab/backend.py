"""The search backend of the experiment: BM25, which merges the rewrites that it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from training.data.pairs import World
from training.data.search import DEPTH, REWRITE_WEIGHT, fuse

PAGE = 24
"""Products on a page of results; shoppers see only the first page."""
UNJUDGED = 1.0
"""Grade of a product without a grade for the query: bad."""

Scorer = Callable[[Sequence[tuple[str, str]]], list[float]]
"""Relevance from 0 to 1 of pairs of a query and a product's title: a judge's."""


class Backend:
    """Pages of results, and the grades of what is on them.

    Args:
        world: the catalogue, its search engine and the grades.
        weight: of a rewrite's ranking in the fusion; the query's own counts 1.
        size: products on a page.
        depth: products that each search returns, and the fusion.
        judge: grades products without a grade; without a judge they count as bad.
    """

    def __init__(
        self,
        world: World,
        *,
        weight: float = REWRITE_WEIGHT,
        size: int = PAGE,
        depth: int = DEPTH,
        judge: Scorer | None = None,
    ) -> None:
        self._world = world
        self._weight, self._size, self._depth = weight, size, depth
        self._judge = judge
        self._found: dict[str, list[str]] = {}
        self._judged: dict[tuple[str, str], float] = {}

    def page(self, query: str, rewrites: Sequence[str] = ()) -> list[str]:
        """Products on the first page for a query and its rewrites, best first."""
        own = self._search(query)
        if not rewrites:
            return own[: self._size]
        rankings = [own, *(self._search(rewrite) for rewrite in rewrites)]
        weights = [1.0] + [self._weight] * len(rewrites)
        return fuse(rankings, self._depth, weights=weights)[: self._size]

    def grades(self, query: str, page: Sequence[str]) -> list[float]:
        """Grade (1 bad .. 3 perfect) of each product of a page, in order."""
        known = self._world.grades.get(query, {})
        missing = [p for p in page if p not in known and (query, p) not in self._judged]
        if missing and self._judge is not None:
            scores = self._judge([(query, self._world.titles[p]) for p in missing])
            for product, score in zip(missing, scores, strict=True):
                self._judged[query, product] = 1 + 2 * score
        return [known.get(p, self._judged.get((query, p), UNJUDGED)) for p in page]

    def _search(self, text: str) -> list[str]:
        if text not in self._found:
            self._found[text] = self._world.index.search(text, self._depth)
        return self._found[text]
