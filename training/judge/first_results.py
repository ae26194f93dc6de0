"""Judge scores of the first results of a text for a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from training.data.pairs import World

Score = Callable[[Sequence[tuple[str, str]]], list[float]]
"""Judge scores in [0, 1] of pairs of a query and a product's title."""


class FirstResults:
    """Mean judge scores of first results; no pair is judged twice.

    Args:
        world: the catalogue and its search engine.
        score: the judge.
        first: results that it looks at.
    """

    def __init__(self, world: World, score: Score, first: int) -> None:
        self._world, self._score, self._first = world, score, first
        self._judged: dict[tuple[str, str], float] = {}

    def prepare(self, texts: Iterable[tuple[str, str]]) -> None:
        """Judge the first results of many texts at once, which is quicker than one by one.

        Args:
            texts: query, and text that is searched for.
        """
        missing = {
            (query, product): None
            for query, text in texts
            for product in self._world.index.search(text, self._first)
            if (query, product) not in self._judged
        }
        if missing:
            titles = self._world.titles
            scores = self._score([(query, titles[product]) for query, product in missing])
            self._judged.update(zip(missing, scores, strict=True))

    def __call__(self, query: str, text: str) -> float:
        """Mean score in [0, 1] of what ``text`` finds first; 0 if it finds nothing."""
        scores = self.each(query, text)
        return sum(scores.values()) / len(scores) if scores else 0.0

    def each(self, query: str, text: str) -> dict[str, float]:
        """Score in [0, 1] of each product that ``text`` finds first, in their order."""
        self.prepare([(query, text)])
        return {p: self._judged[query, p] for p in self._world.index.search(text, self._first)}
