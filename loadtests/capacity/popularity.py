"""How often each query is asked, and what share of the look-ups a cache of some size answers."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Hashable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from model_store.text import normalise

Shares = NDArray[np.float64]
"""Share of the traffic of each query, shape [queries], falling; they sum to 1."""


def zipf(queries: int, exponent: float) -> Shares:
    """Shares by Zipf's law: the query of rank r is asked 1 / r^exponent as often as the first."""
    weights = np.arange(1, queries + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def of_log(log: Iterable[Hashable]) -> Shares:
    """Shares as a log has them."""
    counts = np.sort(np.array([*Counter(log).values()], dtype=np.float64))[::-1]
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def fitted_exponent(shares: Shares) -> float:
    """The exponent under which Zipf's law makes these frequencies likeliest.

    Maximum likelihood over a grid of 0.01, since least squares on log-log counts gives the long
    tail of queries asked once far too much weight.
    """
    logs = np.log(np.arange(1, len(shares) + 1))
    grid = np.arange(0.2, 2.0, 0.01)
    likelihood = [-s * float(shares @ logs) - float(np.log(np.exp(-s * logs).sum())) for s in grid]
    return round(float(grid[int(np.argmax(likelihood))]), 2)


def hit_ratio(
    shares: Shares, *, searches_per_s: float, entries: float, ttl_s: float = float("inf")
) -> float:
    """Share of look-ups that an LRU cache answers, by Che's approximation.

    A query asked at rate r is there if it was asked within the cache's characteristic time t:
    1 - exp(-r t), where t is such that these sum to the entries (Che, Tung and Wang 2002). An
    entry that also ends at a fixed age cannot bring more than r * ttl hits for each miss (it is
    not renewed by being read); the smaller of both bounds is taken.

    Args:
        shares: of the queries.
        searches_per_s: look-ups a second, over all queries.
        entries: room of the cache.
        ttl_s: age at which an entry ends.
    """
    if not searches_per_s:
        return 0.0
    rates = shares * searches_per_s
    t = _characteristic_time(rates, entries)
    asked = rates * t
    # Hits for each miss: p / (1 - p) of p = 1 - exp(-rt), without its overflow.
    by_size = np.expm1(np.minimum(asked, 700.0))
    hits = np.minimum(by_size, rates * ttl_s)
    return float(shares @ (hits / (1 + hits)))


def _characteristic_time(rates: Shares, entries: float) -> float:
    if entries >= len(rates):
        return float("inf")
    if entries <= 0:
        return 0.0
    # At that end even the least popular query is there, but for a share of 1e-16.
    high = 37.0 / rates.min()
    return float(brentq(lambda t: -np.expm1(-rates * t).sum() - entries, 0.0, high))


def replayed(log: Iterable[Hashable], entries: int) -> float:
    """Share of hits of an LRU cache of ``entries`` that is empty at first, over a log in order."""
    cache = lru_cache(entries)(lambda _: None)
    for query in log:
        cache(query)
    hits, misses, *_ = cache.cache_info()
    return hits / max(1, hits + misses)


def read_log(files: Iterable[Path], *, column: str = "query", time: str | None = None) -> list[str]:
    """Queries of CSV files, in the normal form of a version that folds case.

    Args:
        files: with a header.
        column: holds the query.
        time: holds when it was asked, in a form that sorts as text; default: as they stand.

    Raises:
        KeyError: a file lacks a column.
    """
    found: list[tuple[str, str]] = []
    for path in files:
        with path.open(encoding="utf-8", errors="replace", newline="") as lines:
            found += [
                (row[time] if time else "", normalise(row[column], fold_case=True))
                for row in csv.DictReader(lines)
            ]
    if time:
        found.sort(key=lambda row: row[0])
    return [query for _, query in found if query]
