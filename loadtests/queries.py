"""Queries as shoppers send them: few very often, many rarely, some never before."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from pathlib import Path

from model_store.text import MAX_QUERY_CHARS, normalise

DATA_ENV = "REQUERY_DATA"
_FEW = 50
"""Queries that make a list worth drawing from."""
_TRIES = 20

_THINGS = (
    "steel stake", "ceiling fan", "vinyl flooring", "deck screws", "shower head", "extension cord",
    "garden hose", "door knob", "paint roller", "tile grout", "wood glue", "led bulb", "drill bit",
    "angle bracket", "storage bin", "kitchen faucet", "work gloves", "tool box", "fence post",
    "wall anchor", "pipe clamp", "area rug", "smoke alarm", "snow shovel",
)  # fmt: skip
_SIZES = ("2 in", "4 ft", "6 inch", "8 ft", "10 pack", "12 in", "24 inch", "3 piece")


class Queries:
    """Draws queries.

    Args:
        known: by falling popularity.
        seed: of every draw.
        exponent: of Zipf's law: the query of rank r is sent 1 / r^exponent as often as the first.

    Raises:
        ValueError: ``known`` is empty.
    """

    def __init__(self, known: Sequence[str], *, seed: int, exponent: float = 1.0) -> None:
        if not known:
            raise ValueError("there are no queries to draw from")
        self.known = tuple(known)
        self._rng = random.Random(seed)
        self._cumulative = list(accumulate((r + 1) ** -exponent for r in range(len(known))))
        self._words = [query.split() for query in known]
        self._taken = {_normal(query) for query in known}
        self._numbers = count(2)

    def popular(self) -> str:
        """One of the known queries, by Zipf's law."""
        (query,) = self._rng.choices(self.known, cum_weights=self._cumulative)
        return query

    def unseen(self) -> str:
        """A query that was never drawn before: the start of one known query, the end of another."""
        for _ in range(_TRIES):
            head, tail = self._rng.choice(self._words), self._rng.choice(self._words)
            words = head[: self._rng.randint(1, len(head))] + tail[self._rng.randrange(len(tail)) :]
            query = " ".join(words)
            if len(query) <= MAX_QUERY_CHARS and self._is_new(query):
                return query
        # A short list has few combinations: then a number makes it new.
        return next(q for n in self._numbers if self._is_new(q := f"{self.known[0]} {n} pack"))

    def _is_new(self, query: str) -> bool:
        form = _normal(query)
        if form in self._taken:
            return False
        self._taken.add(form)
        return True


def known_queries(folder: Path | None = None, *, seed: int = 0) -> tuple[tuple[str, ...], str]:
    """Known queries in random order, and where they are from.

    Args:
        folder: holds ``home_depot/train.csv``; default: what REQUERY_DATA names. If it is not
            there, products and sizes are combined.
        seed: of the order, which is the order of popularity.
    """
    named = folder or (Path(os.environ[DATA_ENV]) if os.environ.get(DATA_ENV) else None)
    found = list(dict.fromkeys(_usable(_real(named)))) if named else []
    source = "queries of Home Depot's train.csv"
    if len(found) < _FEW:
        found = [f"{size} {thing}" for thing in _THINGS for size in ("", *_SIZES)]
        found, source = [query.strip() for query in found], "a built-in list"
    random.Random(seed).shuffle(found)
    return tuple(found), source


def _real(folder: Path) -> list[str]:
    try:
        from training.data.readers import home_depot
        from training.errors import DataError
    except ModuleNotFoundError:
        return []  # an installation that only serves
    try:
        column: list[str] = home_depot.read(folder / "home_depot").queries["query"].to_list()
    except DataError:
        return []
    return column


def _usable(queries: Sequence[str]) -> Iterator[str]:
    for query in queries:
        tidy = " ".join(query.split())
        if 1 <= len(_normal(tidy)) <= MAX_QUERY_CHARS:
            yield tidy


def _normal(query: str) -> str:
    return normalise(query, fold_case=True)
